//! `outlive gateway`.

use crate::config::GatewayConfig;
use crate::members::{self, Observer};
use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use http::StatusCode;
use outlive_core::address::Address;
use outlive_gateway::{Directory, Gateway, Placement, State};
use outlive_runtime::NodeConfig;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;

/// Runs until a signal, then lets requests finish.
pub(super) async fn run(config: GatewayConfig) -> anyhow::Result<ExitCode> {
    let listen = config.listen.clone().context("gateway.listen is not set")?;
    let mut builder = Gateway::builder().listen(listen).retry(config.retry()).limits(config.limits());
    if let Some(workers) = config.workers {
        builder = builder.workers(workers);
    }
    for cookie in config.cookie() {
        builder = builder.cookie(cookie);
    }
    for proxy in config.trust() {
        builder = builder.trust(proxy.0);
    }
    for member in config.backend.iter().flatten() {
        builder = builder.member(&member.name, member.addr.clone());
    }
    let placed = Arc::<Placed>::default();
    let mut cluster = None;
    if config.is_learnt() {
        cluster = Some((observer(&config).await?, config.namespace()));
        let placed = placed.clone();
        builder = builder.placement(move |cookie: &[u8]| placed.holders(cookie));
    }
    let ended = super::interrupted();
    let gateway = builder.start().await?;
    let draining = Arc::new(AtomicBool::new(false));
    let said = match &config.ready {
        Some(addr) => Some(readiness(addr, gateway.directory(), draining.clone()).await?),
        None => None,
    };
    println!("ready http://{}", gateway.local_addr());
    if let Some(said) = said {
        println!("readiness http://{said}/ready");
    }
    let watching = watch(cluster, placed.clone(), gateway.directory());
    tokio::select! {
        () = ended => {}
        // It watches for ever, unless it cannot begin.
        failed = watching => failed?,
    }
    draining.store(true, Ordering::Relaxed);
    let stopped = gateway.shutdown(config.shutdown_grace()).await;
    if let Some((observer, _)) = placed.0.get() {
        observer.leave().await;
    }
    if stopped.cut > 0 {
        tracing::warn!(cut = stopped.cut, "connections were cut because they did not end in time");
    }
    Ok(ExitCode::SUCCESS)
}

/// Who knows which members hold a session, once the cluster was met.
#[derive(Default)]
struct Placed(OnceLock<(Observer, Box<dyn Placement>)>);

impl Placed {
    fn holders(&self, cookie: &[u8]) -> Vec<String> {
        self.0.get().map(|(_, placement)| placement.holders(cookie)).unwrap_or_default()
    }
}

async fn observer(config: &GatewayConfig) -> anyhow::Result<NodeConfig> {
    let mut node = NodeConfig::default();
    node.cluster = config.cluster.clone().unwrap_or_default();
    node.join = config.join();
    node.secret = config.secret.map(|secret| secret.0);
    node.danger_plain_peers = config.danger_plain_peers();
    node.store = members::store(config.store.as_ref()).await?;
    Ok(node)
}

/// Meets the cluster, however long it takes, and keeps `directory` true.
async fn watch(cluster: Option<(NodeConfig, String)>, placed: Arc<Placed>, directory: Directory) -> anyhow::Result<()> {
    let Some((node, namespace)) = cluster else { return std::future::pending().await };
    let observer = Observer::meet(node).await.context("cannot join the cluster")?;
    let placement = Box::new(observer.holders(&namespace));
    // It is set here alone.
    let _ = placed.0.set((observer.clone(), placement));
    observer.keep(directory, |_| {}).await;
    Ok(())
}

/// Serves `GET /ready`, and says where.
async fn readiness(addr: &Address, directory: Directory, draining: Arc<AtomicBool>) -> anyhow::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind((addr.host(), addr.port())).await.with_context(|| format!("cannot listen on {addr}"))?;
    let bound = listener.local_addr()?;
    let answer = move || std::future::ready(answer(&directory, draining.load(Ordering::Relaxed)));
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/ready", get(answer))).await });
    Ok(bound)
}

fn answer(directory: &Directory, draining: bool) -> (StatusCode, String) {
    let up = directory.stats().iter().filter(|member| member.state == State::Up).count();
    match up {
        _ if draining => (StatusCode::SERVICE_UNAVAILABLE, "draining".to_owned()),
        0 => (StatusCode::SERVICE_UNAVAILABLE, "starting: there is no member to send requests to".to_owned()),
        _ => (StatusCode::OK, format!("ready: {up} members")),
    }
}
