//! What can be done to the nodes as a whole: started, deployed, set to keep copies or none.

use crate::demo::nodes::{Nodes, PATIENCE};
use crate::demo::world::{Doing, World};
use std::sync::Arc;

/// The nodes, their world, and the store that they share.
pub(crate) struct Stage {
    world: Arc<World>,
    nodes: Arc<Nodes>,
    store: String,
    /// The durability that it was started with.
    started: String,
}

impl Stage {
    pub(crate) fn new(world: Arc<World>, nodes: Arc<Nodes>, store: String) -> Arc<Stage> {
        let started = world.durability();
        Arc::new(Stage { world, nodes, store, started })
    }

    pub(crate) fn world(&self) -> &Arc<World> {
        &self.world
    }

    pub(crate) fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// Starts every node that does not run.
    pub(crate) async fn start_all(&self) -> anyhow::Result<()> {
        for name in self.world.names.iter() {
            if self.world.node(name).is_some_and(|node| node.state.is_gone()) {
                self.start(name).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn start(&self, name: &str) -> anyhow::Result<()> {
        self.nodes.start(name, &self.store).await
    }

    pub(crate) async fn restart(&self, name: &str) -> anyhow::Result<()> {
        self.nodes.restart(name, &self.store).await
    }

    /// Each node in turn is drained and started anew, and the next only when all sessions have their copies again.
    pub(crate) async fn deploy(&self) -> anyhow::Result<()> {
        for name in self.world.names.iter() {
            self.restart(name).await?;
            anyhow::ensure!(self.nodes.settled().await, "the copies were not all made again within {} s", PATIENCE.as_secs());
        }
        Ok(())
    }

    // ---- the same as buttons: they begin and return -----------------------------------------------------------------------------

    pub(crate) fn begin_start(self: &Arc<Self>, name: String) {
        let stage = self.clone();
        tokio::spawn(async move { stage.note(&name, stage.start(&name).await) });
    }

    /// False if the nodes are being deployed already.
    pub(crate) fn begin_deploy(self: &Arc<Self>) -> bool {
        self.exclusively(Doing::Deploying, |stage| async move {
            let result = stage.deploy().await;
            stage.note("", result);
        })
    }

    /// Starts all nodes anew with another durability. False if something is being done to all of them already.
    pub(crate) fn begin_keep(self: &Arc<Self>, copies: bool) -> bool {
        match (copies, self.started.as_str()) {
            (false, _) => self.begin_at("owner".into()),
            (true, "owner") => self.begin_at("backup(1)".into()),
            (true, started) => self.begin_at(started.into()),
        }
    }

    /// Everything as it was at the start.
    pub(crate) fn begin_reset(self: &Arc<Self>) -> bool {
        self.begin_at(self.started.clone())
    }

    fn begin_at(self: &Arc<Self>, durability: String) -> bool {
        let same = self.world.durability() == durability;
        self.exclusively(if same { Doing::Starting } else { Doing::Changing }, move |stage| async move {
            if !same {
                // In order, so that the store has every session.
                stage.nodes.stop_all(PATIENCE).await;
                stage.world.set_durability(&durability);
            }
            let result = stage.start_all().await;
            stage.note("", result);
        })
    }

    fn exclusively<F>(self: &Arc<Self>, doing: Doing, act: impl FnOnce(Arc<Stage>) -> F + Send + 'static) -> bool
    where
        F: Future<Output = ()> + Send,
    {
        if !self.world.begin(doing) {
            return false;
        }
        let stage = self.clone();
        tokio::spawn(async move {
            act(stage.clone()).await;
            stage.world.end();
        });
        true
    }

    fn note(&self, node: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.world.log(crate::clock::wall_ms(), node, format!("{error:#}"));
        }
    }
}
