//! `outlive gateway`.

use crate::config::{GatewayConfig, Members};
use crate::members::{self, Observer};
use anyhow::Context as _;
use outlive_gateway::Gateway;
use outlive_runtime::NodeConfig;
use std::process::ExitCode;

/// Runs until a signal, then lets requests finish.
pub(super) async fn run(config: GatewayConfig) -> anyhow::Result<ExitCode> {
    let mut builder = Gateway::builder().listen(config.listen).retry(config.retry).limits(config.limits);
    if let Some(workers) = config.workers {
        builder = builder.workers(workers);
    }
    for cookie in config.cookies {
        builder = builder.cookie(cookie);
    }
    for network in config.trust {
        builder = builder.trust(network);
    }
    let mut observer = None;
    match config.members {
        Members::Fixed(members) => builder = members.into_iter().fold(builder, |builder, (name, addr)| builder.member(name, addr)),
        Members::Learnt(cluster) => {
            let mut node = NodeConfig::default();
            node.cluster = cluster.name;
            node.join = cluster.join;
            node.secret = cluster.secret.map(|secret| secret.0);
            node.store = members::store(cluster.store.as_deref()).await?;
            let joined = Observer::start(node).await.context("cannot join the cluster")?;
            builder = builder.placement(joined.holders(&cluster.namespace));
            observer = Some(joined);
        }
    }
    let gateway = builder.start().await?;
    if let Some(observer) = &observer {
        tokio::spawn(observer.clone().keep(gateway.directory(), |_| {}));
    }
    println!("ready http://{}", gateway.local_addr());
    super::interrupted().await;
    let stopped = gateway.shutdown(config.shutdown_grace).await;
    if let Some(observer) = observer {
        observer.leave().await;
    }
    if stopped.cut > 0 {
        tracing::warn!(cut = stopped.cut, "connections were cut because they did not end in time");
    }
    Ok(ExitCode::SUCCESS)
}
