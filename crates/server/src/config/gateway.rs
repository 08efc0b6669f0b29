//! `[gateway]`.

use crate::config::Command;
use outlive::settings::{Secret, Size, Spelling, StoreUrl, at_least, not_empty, or_why, table, within};
use outlive_core::address::Address;
use outlive_core::name::{NAMESPACE, check_namespace, check_node};
use outlive_gateway::{Limits, Network};
use std::time::Duration;

table! {
    /// The settings of `outlive gateway`.
    pub(crate) struct GatewayConfig {
        "gateway.listen" listen: Address => "Where clients connect; with a name, at each of its addresses";
        "gateway.ready" ready: Address => "Where GET /ready says whether requests can be sent to anybody";
        "gateway.join" join: Vec<Address> = Vec::new(), if |nodes| super::node::reachable(nodes)
            => "Nodes of the cluster, by their peer addresses: members are learnt from them";
        "gateway.store" store: StoreUrl => "The cluster's store, where its nodes and its secret are found: sqlite:PATH";
        "gateway.secret" secret: Secret => "The cluster's secret: 64 hex digits; otherwise the store's";
        "gateway.cluster" cluster: String, if |name| not_empty(name)
            => "The cluster's name; otherwise as told by a node that proves to know the secret";
        "gateway.namespace" namespace: String = NAMESPACE.to_owned(), if |name| or_why(check_namespace(name))
            => "The application whose sessions are routed to their copies";
        "gateway.danger_plain_peers" danger_plain_peers: bool = false => "Speak plain TCP with nodes on other than loopback addresses";
        "gateway.backend" backend: Vec<Backend> => "A fixed member; sticky by a cookie whose value ends in .NAME";
        "gateway.cookie" cookie: Vec<String> = Vec::new() => "A cookie that carries a route; otherwise any that ends in a member's name";
        "gateway.trust" trust: Vec<Proxy> = Vec::new() => "A proxy whose X-Forwarded headers stand, such as 10.0.0.0/8";
        "gateway.retry" retry: bool = true => "Send a request that broke to another member, if its method is idempotent";
        "gateway.workers" workers: usize, if |n| within(n, 1..=1024) => "Worker threads; otherwise one for each processor";
        "gateway.connect_timeout" connect_timeout: Duration = Limits::default().connect_timeout, if some
            => "For each address of a member to accept a connection";
        "gateway.response_timeout" response_timeout: Duration = Limits::default().response_timeout, if some
            => "For a member's response to begin; then 504";
        "gateway.stream_timeout" stream_timeout: Duration = Limits::default().stream_timeout, if some
            => "A member's silence within a response, such as between two events";
        "gateway.head_timeout" head_timeout: Duration = Limits::default().head_timeout, if some
            => "A request's head, from its first byte to its last";
        "gateway.idle_timeout" idle_timeout: Duration = Limits::default().idle_timeout, if some => "For a client's next request";
        "gateway.stall_timeout" stall_timeout: Duration = Limits::default().stall_timeout, if some
            => "A client that takes nothing of its response or sends nothing of its body";
        "gateway.leave_timeout" leave_timeout: Duration = Limits::default().leave_timeout, if some
            => "A member's silence towards a client that has closed its side";
        "gateway.linger_timeout" linger_timeout: Duration = Limits::default().linger_timeout, if some
            => "For a client to read the response to what was not read to its end";
        "gateway.tunnel_timeout" tunnel_timeout: Duration = Limits::default().tunnel_timeout, if some
            => "Silence of both sides of a WebSocket";
        "gateway.member_idle" member_idle: Duration = Limits::default().member_idle, if some
            => "A connection to a member without use: less than members keep theirs";
        "gateway.max_head" max_head: Size = Size(Limits::default().max_head), if |size| within(size, Size(8 << 10)..=Size(1 << 20))
            => "A request's head, then 431; and a response's, then 502";
        "gateway.max_connections" max_connections: usize = Limits::default().max_connections, if |n| within(n, 1..=1_000_000)
            => "Connections from clients";
        "gateway.shutdown_grace" shutdown_grace: Duration = Duration::from_secs(30) => "For requests to end after SIGTERM";
    }
}

/// 365d is as good as never.
fn some(time: &Duration) -> Result<(), String> {
    at_least(time, Duration::from_millis(1))
}

/// `NAME=ADDR`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) addr: Address,
}

impl Spelling for Backend {
    const UNIT: &'static str = "NAME=ADDR";

    fn read(text: &str) -> Result<Backend, String> {
        let (name, addr) = match text.split_once('=') {
            Some((name, addr)) if check_node(name).is_ok() => (name.to_owned(), Address::read(addr)?),
            _ => return Err("must be NAME=ADDR, such as a=127.0.0.1:9001 or a=app1:9001, its name of letters, digits, `-` and `_`".into()),
        };
        Ok(Backend { name, addr: addr.reachable().map_err(|error| error.to_string())? })
    }

    fn write(&self) -> String {
        format!("{}={}", self.name, self.addr)
    }
}

/// Whose word about others is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Proxy(pub(crate) Network);

impl Spelling for Proxy {
    const UNIT: &'static str = "NETWORK";

    fn read(text: &str) -> Result<Proxy, String> {
        text.parse().map(Proxy).map_err(|_| "must be an address or a range such as 10.0.0.0/8".to_owned())
    }

    fn write(&self) -> String {
        self.0.to_string()
    }
}

impl GatewayConfig {
    /// Members are those of a cluster, as it says itself.
    pub(crate) fn is_learnt(&self) -> bool {
        self.join.is_some() || self.store.as_ref().and_then(StoreUrl::some).is_some()
    }

    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.connect_timeout = self.connect_timeout();
        limits.response_timeout = self.response_timeout();
        limits.stream_timeout = self.stream_timeout();
        limits.head_timeout = self.head_timeout();
        limits.idle_timeout = self.idle_timeout();
        limits.stall_timeout = self.stall_timeout();
        limits.leave_timeout = self.leave_timeout();
        limits.linger_timeout = self.linger_timeout();
        limits.tunnel_timeout = self.tunnel_timeout();
        limits.member_idle = self.member_idle();
        limits.max_head = self.max_head().0;
        limits.max_connections = self.max_connections();
        limits
    }
}

impl Command for GatewayConfig {
    const NAME: &'static str = "gateway";
    const ABOUT: &'static str = "A balancer that keeps visitors with the node that has their session";

    fn clashes(&self, given: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut clashes = Vec::new();
        if !given("gateway.listen") {
            clashes.push("gateway.listen is not set, and is needed: give --listen, or set it in the environment or the file".to_owned());
        }
        let learnt = given("gateway.join") || self.is_learnt();
        match (learnt, given("gateway.backend")) {
            (false, false) => clashes.push(
                "none of gateway.join, gateway.store and gateway.backend is set: a gateway learns its members (--join 10.0.0.1:7400, \
                 --store sqlite:PATH) or is told them (--backend a=127.0.0.1:9001)"
                    .to_owned(),
            ),
            (true, true) => clashes
                .push("gateway.backend is set, and so is gateway.join or gateway.store: members are either learnt or fixed".to_owned()),
            _ => {}
        }
        for key in ["gateway.cluster", "gateway.secret", "gateway.namespace", "gateway.danger_plain_peers"] {
            if given(key) && !learnt {
                clashes.push(format!("{key} is set, and neither gateway.join nor gateway.store is: fixed members are of no cluster"));
            }
        }
        let mut names: Vec<&str> = self.backend.iter().flatten().map(|backend| backend.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            clashes.push(format!("gateway.backend names `{}` twice, and a name is one member's", pair[0]));
        }
        clashes
    }
}
