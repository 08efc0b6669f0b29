//! Nodes in this process.

use core::time::Duration;
use outlive::{Config, Outlive};

/// A node with the settings of the workload application.
pub(crate) async fn node(name: &str, durability: &str, store: &str, join: &[String]) -> anyhow::Result<Outlive> {
    let mut config = Config::default();
    let settings = [("durability", durability), ("store", store), ("on_lost", "serve"), ("node", name), ("cluster", "outlive-bench")];
    let wrong: Vec<String> = settings.iter().filter_map(|(path, text)| config.set(path, text).err()).collect();
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(Outlive::builder().config(config).join(join).start().await?)
}

/// Waits until a node knows that many, itself included.
pub(crate) async fn know_each_other(outlive: &Outlive, nodes: usize) -> anyhow::Result<()> {
    let met = async {
        while outlive.members() != nodes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), met).await.map_err(|_| anyhow::anyhow!("the nodes did not find each other"))
}
