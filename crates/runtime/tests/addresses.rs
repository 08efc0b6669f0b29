//! Addresses that nodes listen on, dial and are told: names, every address of a machine, and what cannot be used.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::{N, addr, config, met};
use outlive_runtime::{Node, NodeConfig, StartError};

fn with(listen: &str, advertise: Option<&str>, http: Option<&str>) -> NodeConfig {
    let mut config = config("n0", &[]);
    config.listen = Some(listen.parse().unwrap());
    config.advertise = advertise.map(|text| text.parse().unwrap());
    config.http = http.map(|text| text.parse().unwrap());
    config.danger_plain_peers = true;
    config.secret = Some([1; 32]);
    config
}

#[tokio::test]
async fn nodes_meet_by_name_and_tell_it_on() {
    let first: N = Node::start(with("localhost:0", None, None)).await.unwrap();
    assert!(addr(&first).starts_with("localhost:"), "{}", addr(&first));
    let mut second = with("127.0.0.1:0", None, None);
    (second.name, second.join) = (Some("n1".to_owned()), vec![addr(&first).parse().unwrap()]);
    let second: N = Node::start(second).await.unwrap();
    met(&[first, second]).await;
}

#[tokio::test]
async fn http_on_every_address_is_told_as_the_host_where_peers_connect() {
    let every = with(":0", Some("localhost:7"), Some(":8080"));
    let node: N = Node::start(every).await.unwrap();
    assert_eq!((&*node.me().addr, &*node.me().http), ("localhost:7", "localhost:8080"));
    let node: N = Node::start(with("127.0.0.1:0", None, Some("http://0.0.0.0:8080"))).await.unwrap();
    assert_eq!(&*node.me().http, "127.0.0.1:8080");
    let node: N = Node::start(with("127.0.0.1:0", None, Some("http://App1:8080/"))).await.unwrap();
    assert_eq!(&*node.me().http, "app1:8080");
}

#[tokio::test]
async fn an_address_that_others_cannot_use_keeps_the_node_from_starting_and_the_sentence_says_which_they_can() {
    let why = async |config| Node::<()>::start(config).await.map(drop).unwrap_err();
    assert!(matches!(why(with("0.0.0.0:0", None, None)).await, StartError::Advertise(_)));
    let any = why(with("127.0.0.1:0", Some(":7400"), None)).await.to_string();
    assert!(any.contains("advertise: ") && any.contains("app1:7400"), "{any}");
    let local = why(with(":0", Some("10.0.0.7:7400"), Some("localhost:8080"))).await.to_string();
    assert!(local.contains("http: ") && local.ends_with("such as 10.0.0.7:8080"), "{local}");
    let mut joins = with("127.0.0.1:0", None, None);
    joins.join = vec![":7400".parse().unwrap()];
    let join = why(joins).await.to_string();
    assert!(join.contains("join: ") && join.contains("10.0.0.7:7400"), "{join}");
}
