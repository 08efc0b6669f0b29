//! `outlive demo`: a shop on several nodes, and someone who kills them.

mod book;
mod client;
mod histogram;
mod node;
mod nodes;
mod script;
mod sentence;
mod shop;
mod stage;
mod story;
mod tally;
mod visitors;
mod web;
mod world;

pub(crate) use node::{Options, run as run_node};

use crate::clock::wall_ms;
use crate::config::DemoConfig;
use crate::members::{self, Observer};
use anyhow::Context as _;
use nodes::Nodes;
use outlive::settings::{Spelling as _, StoreUrl};
use outlive_gateway::{Gateway, Running};
use outlive_runtime::NodeConfig;
use stage::Stage;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use visitors::Crowd;
use world::World;

/// The namespace that an application has unless it asks for another.
const NAMESPACE: &str = "session";
/// How often pages are sent dots.
const DOTS_EVERY: Duration = Duration::from_millis(200);

/// A folder that goes when the demo does.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Folder> {
        let path = std::env::temp_dir().join(format!("outlive-demo-{}-{}", std::process::id(), wall_ms()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything that runs.
struct Demo {
    stage: Arc<Stage>,
    gateway: Running,
    observer: Observer,
    crowd: Crowd,
    stop: watch::Sender<bool>,
    shoppers: JoinHandle<()>,
    _folder: Option<Folder>,
}

/// Starts the nodes and the gateway and sends the shoppers in.
async fn start(config: &DemoConfig, pause: Duration) -> anyhow::Result<Demo> {
    let (folder, store) = match &config.store {
        Some(store) => (None, store.0.clone()),
        None => {
            let folder = Folder::new()?;
            let store = format!("sqlite:{}", folder.0.join("sessions.db").display());
            (Some(folder), store)
        }
    };
    let names: Vec<String> = (0..config.nodes()).map(name).collect();
    let world = Arc::new(World::new(names, store.clone(), config.durability().write(), config.state.clone()));
    // The secret of a cluster without a store comes from its name, so it is one that nobody else has.
    let cluster = format!("demo-{}-{}", std::process::id(), wall_ms());
    let nodes = Nodes::new(world.clone(), cluster.clone());
    let stage = Stage::new(world.clone(), nodes, store.clone());
    stage.start_all().await?;
    let (gateway, observer) = start_gateway(&world, cluster, &store).await?;
    world.set_gateway(gateway.local_addr());
    let (stop, stopping) = watch::channel(false);
    let crowd = Crowd {
        gateway: gateway.local_addr(),
        connections: client::connections(),
        tally: world.tally.clone(),
        nodes: world.names.clone(),
        pause,
        stop: stopping,
    };
    world.set_shoppers(config.visitors());
    let shoppers = tokio::spawn(visitors::shop(crowd.clone(), config.visitors()));
    Ok(Demo { stage, gateway, observer, crowd, stop, shoppers, _folder: folder })
}

/// The gateway, and the observer that tells it who there is.
async fn start_gateway(world: &Arc<World>, cluster: String, store: &str) -> anyhow::Result<(Running, Observer)> {
    let mut config = NodeConfig::default();
    config.name = Some("gateway".into());
    config.cluster = cluster;
    config.join = world.nodes().iter().filter_map(|node| node.peer).map(Into::into).collect();
    config.store = members::store(Some(&StoreUrl(store.to_owned()))).await?;
    let observer = Observer::start(config).await.context("the gateway cannot join the nodes")?;
    let holders = observer.holders(NAMESPACE);
    let gateway = Gateway::builder().listen(SocketAddr::from(([127, 0, 0, 1], 0))).cookie("OUTLIVESID").placement(holders);
    let gateway = gateway.start().await.context("cannot start the gateway")?;
    observer.wait_for(world.nodes().len(), &gateway.directory()).await;
    let (told, mut before) = (world.clone(), Vec::new());
    tokio::spawn(observer.clone().keep(gateway.directory(), move |observer| {
        let live = observer.live();
        for name in before.iter().filter(|name| !live.contains(name)) {
            told.log(wall_ms(), "gateway", format!("notices that {name} is gone"));
        }
        before = live;
    }));
    Ok((gateway, observer))
}

impl Demo {
    /// Sends the shoppers home, and ends everything else in order.
    async fn end(self) {
        self.stop.send_replace(true);
        // Someone may still wait for an answer.
        let _ = tokio::time::timeout(Duration::from_secs(60), self.shoppers).await;
        self.stage.nodes().stop_all(Duration::from_secs(5)).await;
        self.observer.leave().await;
        self.gateway.shutdown(Duration::from_secs(1)).await;
    }
}

/// A, B, … Z, then N26 and on.
fn name(index: usize) -> String {
    u8::try_from(index).ok().filter(|i| *i < 26).map_or_else(|| format!("N{index}"), |i| char::from(b'A' + i).to_string())
}

/// Runs the demo: with a page, or played without a person.
pub(crate) async fn run(config: DemoConfig) -> anyhow::Result<ExitCode> {
    if config.script() { script::run(&config).await } else { show(&config).await }
}

async fn show(config: &DemoConfig) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(config.listen()).await.with_context(|| format!("cannot listen on {}", config.listen()))?;
    let addr = listener.local_addr()?;
    let demo = start(config, Duration::from_millis(1200)).await?;
    let world = demo.stage.world().clone();
    for node in world.nodes() {
        let at = node.http.map(|http| format!("http://{http}")).unwrap_or_default();
        println!("node {}   {at}   process {}", node.name, node.pid.unwrap_or_default());
    }
    println!("gateway  http://{}", demo.crowd.gateway);
    println!("store    {}", config.store.as_ref().map_or("SQLite in a temporary folder, which goes when the demo does", |store| &store.0));
    let ended = crate::cli::interrupted();
    println!("ready http://{addr}");
    let dots = tokio::spawn(async move {
        loop {
            tokio::time::sleep(DOTS_EVERY).await;
            world.send_dots();
        }
    });
    let app = web::routes(demo.stage.clone(), demo.crowd.gateway);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    ended.await;
    // Event streams never end by themselves.
    server.abort();
    dots.abort();
    demo.end().await;
    Ok(ExitCode::SUCCESS)
}
