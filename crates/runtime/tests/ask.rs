//! The name of a cluster, for an observer that is set to none.
#![allow(clippy::unwrap_used)]

use outlive_core::address::Address;
use outlive_runtime::{AskError, Node, NodeConfig, cluster_of};
use outlive_store::MemoryStore;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

async fn node(cluster: &str, secret: Option<[u8; 32]>, store: Option<Arc<MemoryStore>>) -> Node<()> {
    let mut config = NodeConfig::default();
    config.cluster = cluster.to_owned();
    config.secret = secret;
    config.store = store.map(|store| store as _);
    Node::start(config).await.unwrap()
}

fn addr(node: &Node<()>) -> Address {
    node.me().addr.parse().unwrap()
}

fn asking(join: Vec<Address>) -> NodeConfig {
    let mut config = NodeConfig::default();
    config.cluster = String::new();
    config.join = join;
    config.observer = true;
    config
}

/// Somebody who accepts connections, says these bytes and waits.
async fn impostor(says: &'static [u8]) -> Address {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(says).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    addr.into()
}

#[tokio::test]
async fn the_name_is_that_of_a_node_that_proves_to_know_the_secret_and_of_no_other() {
    let (other, ours) = (node("other", Some([1; 32]), None).await, node("ours", Some([2; 32]), None).await);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody: Address = free.local_addr().unwrap().into();
    drop(free);
    let (rude, liar) = (impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n").await, impostor(b"\0\x02\x01\xff").await);
    let mut config = asking(vec![nobody, rude, liar, addr(&other), addr(&ours)]);
    config.secret = Some([2; 32]);
    assert_eq!(cluster_of(&config).await.unwrap(), "ours");
    config.secret = Some([3; 32]);
    let Err(AskError::Nobody(tried)) = cluster_of(&config).await else { panic!("it was told") };
    assert_eq!(tried.len(), 5);
    assert!(tried[0].1.contains("refused") && tried[3].1.contains("secret") && tried[4].1.contains("secret"), "{tried:?}");
}

#[tokio::test]
async fn on_one_machine_without_a_secret_the_name_that_is_told_is_enough() {
    let ours = node("a cluster of this machine", None, None).await;
    assert_eq!(cluster_of(&asking(vec![addr(&ours)])).await.unwrap(), "a cluster of this machine");
    let secret = node("secret", Some([1; 32]), None).await;
    assert!(matches!(cluster_of(&asking(vec![addr(&secret)])).await, Err(AskError::Nobody(_))), "that needs the secret");
}

#[tokio::test]
async fn the_store_says_where_nodes_are_and_what_the_secret_is() {
    let store = Arc::new(MemoryStore::new());
    let mut config = asking(Vec::new());
    config.store = Some(store.clone());
    assert!(matches!(cluster_of(&config).await, Err(AskError::Nobody(tried)) if tried.is_empty()));
    let _node = node("stored", None, Some(store)).await;
    let found = async {
        loop {
            match cluster_of(&config).await {
                Ok(name) => return name,
                Err(AskError::Nobody(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert_eq!(tokio::time::timeout(std::time::Duration::from_secs(60), found).await.unwrap(), "stored");
}

#[tokio::test]
async fn asking_leaves_no_member_behind() {
    let ours = node("ours", None, None).await;
    for _ in 0..20 {
        cluster_of(&asking(vec![addr(&ours)])).await.unwrap();
    }
    assert_eq!(ours.members().len(), 1, "itself");
}
