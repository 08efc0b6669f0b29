//! `[gateway]`.

use crate::config::units::{self, Secret};
use crate::config::{Errors, Layers, Section, Setting};
use outlive_core::address::Address;
use outlive_gateway::{Limits, Network};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(crate) const SECTION: Section = Section {
    name: "gateway",
    about: "A balancer that keeps visitors with the node that has their session",
    settings: &[
        Setting::one("gateway.listen", "ADDR", None, "Where clients connect; with a name, at each of its addresses"),
        Setting::one("gateway.ready", "ADDR", None, "Where GET /ready says whether requests can be sent to anybody"),
        Setting::many("gateway.join", "HOST:PORT", "A node of the cluster, by its peer address: members are learnt from it"),
        Setting::one("gateway.store", "URL", None, "The cluster's store, where its nodes and its secret are found: sqlite:PATH"),
        Setting::one("gateway.secret", "HEX", None, "The cluster's secret: 64 hex digits; otherwise the store's"),
        Setting::one("gateway.cluster", "NAME", None, "The cluster's name; otherwise as told by a node that proves to know the secret"),
        Setting::one("gateway.namespace", "NAME", Some("session"), "The application whose sessions are routed to their copies"),
        Setting::switch("gateway.danger_plain_peers", "false", "Speak plain TCP with nodes on other than loopback addresses"),
        Setting::many("gateway.backend", "NAME=ADDR", "A fixed member; sticky by a cookie whose value ends in .NAME"),
        Setting::many("gateway.cookie", "NAME", "A cookie that carries a route; otherwise any that ends in a member's name"),
        Setting::many("gateway.trust", "NETWORK", "A proxy whose X-Forwarded headers stand, such as 10.0.0.0/8"),
        Setting::switch("gateway.retry", "true", "Send a request that broke to another member, if its method is idempotent"),
        Setting::one("gateway.workers", "N", None, "Worker threads; otherwise one for each processor"),
        Setting::one("gateway.connect_timeout", "TIME", Some("1s"), "For each address of a member to accept a connection"),
        Setting::one("gateway.response_timeout", "TIME", Some("60s"), "For a member's response to begin; then 504"),
        Setting::one("gateway.stream_timeout", "TIME", Some("1h"), "A member's silence within a response, such as between two events"),
        Setting::one("gateway.head_timeout", "TIME", Some("10s"), "A request's head, from its first byte to its last"),
        Setting::one("gateway.idle_timeout", "TIME", Some("75s"), "For a client's next request"),
        Setting::one(
            "gateway.stall_timeout",
            "TIME",
            Some("60s"),
            "A client that takes nothing of its response or sends nothing of its body",
        ),
        Setting::one("gateway.leave_timeout", "TIME", Some("5s"), "A member's silence towards a client that has closed its side"),
        Setting::one("gateway.linger_timeout", "TIME", Some("30s"), "For a client to read the response to what was not read to its end"),
        Setting::one("gateway.tunnel_timeout", "TIME", Some("1h"), "Silence of both sides of a WebSocket"),
        Setting::one("gateway.member_idle", "TIME", Some("4s"), "A connection to a member without use: less than members keep theirs"),
        Setting::one("gateway.max_head", "SIZE", Some("64KiB"), "A request's head, then 431; and a response's, then 502"),
        Setting::one("gateway.max_connections", "N", Some("10000"), "Connections from clients"),
        Setting::one("gateway.shutdown_grace", "TIME", Some("30s"), "For requests to end after SIGTERM"),
    ],
};

/// Who a gateway's members are.
#[derive(Debug)]
pub(crate) enum Members {
    /// A list that does not change.
    Fixed(Vec<(String, Address)>),
    /// Those of a cluster, as it says itself.
    Learnt(Box<Cluster>),
}

/// What it takes to meet a cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) join: Vec<Address>,
    pub(crate) name: Option<String>,
    pub(crate) store: Option<String>,
    pub(crate) secret: Option<Secret>,
    pub(crate) namespace: String,
    pub(crate) danger_plain_peers: bool,
}

/// The settings of `outlive gateway`.
#[derive(Debug)]
pub(crate) struct GatewayConfig {
    pub(crate) listen: Address,
    pub(crate) ready: Option<Address>,
    pub(crate) members: Members,
    pub(crate) cookies: Vec<String>,
    pub(crate) trust: Vec<Network>,
    pub(crate) retry: bool,
    pub(crate) workers: Option<usize>,
    pub(crate) limits: Limits,
    pub(crate) shutdown_grace: Duration,
}

impl GatewayConfig {
    pub(crate) fn new(mut layers: Layers) -> Result<GatewayConfig, Errors> {
        let count = |most: u64| move |text: &str| units::number(text, 1, most).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let mut limits = Limits::default();
        for (key, limit) in [
            ("gateway.connect_timeout", &mut limits.connect_timeout),
            ("gateway.response_timeout", &mut limits.response_timeout),
            ("gateway.stream_timeout", &mut limits.stream_timeout),
            ("gateway.head_timeout", &mut limits.head_timeout),
            ("gateway.idle_timeout", &mut limits.idle_timeout),
            ("gateway.stall_timeout", &mut limits.stall_timeout),
            ("gateway.leave_timeout", &mut limits.leave_timeout),
            ("gateway.linger_timeout", &mut limits.linger_timeout),
            ("gateway.tunnel_timeout", &mut limits.tunnel_timeout),
            ("gateway.member_idle", &mut limits.member_idle),
        ] {
            *limit = layers.required(key, *limit, |text| match units::duration(text)? {
                Duration::ZERO => Err("must be more than 0: 365d is as good as never".to_owned()),
                time => Ok(time),
            });
        }
        limits.max_connections = layers.required("gateway.max_connections", limits.max_connections, count(1_000_000));
        limits.max_head = layers.required("gateway.max_head", limits.max_head, |text| match units::size(text)? {
            size if (8 << 10..=1 << 20).contains(&size) => Ok(size),
            _ => Err("must be from 8KiB to 1MiB".to_owned()),
        });
        let backends = layers.many("gateway.backend", units::backend);
        let cluster = Cluster {
            join: layers.many("gateway.join", units::reachable),
            name: layers.optional("gateway.cluster", units::some),
            store: layers.optional("gateway.store", units::some).filter(|store| store != "none"),
            secret: layers.optional("gateway.secret", units::secret),
            namespace: layers.required("gateway.namespace", String::new(), units::namespace),
            danger_plain_peers: layers.switch("gateway.danger_plain_peers"),
        };
        let learnt = layers.is_given("gateway.join") || cluster.store.is_some();
        check_members(&mut layers, learnt, &backends);
        let members = if learnt { Members::Learnt(Box::new(cluster)) } else { Members::Fixed(backends) };
        let config = GatewayConfig {
            members,
            ready: layers.optional("gateway.ready", units::listen),
            listen: layers.required("gateway.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(), units::listen),
            cookies: layers.many("gateway.cookie", |text| Ok(text.to_owned())),
            trust: layers.many("gateway.trust", |text| text.parse().map_err(|error| format!("must be a network: {error}"))),
            retry: layers.switch("gateway.retry"),
            workers: layers.optional("gateway.workers", count(1024)),
            shutdown_grace: layers.required("gateway.shutdown_grace", Duration::from_secs(30), units::duration),
            limits,
        };
        layers.finish(config)
    }
}

fn check_members(layers: &mut Layers, learnt: bool, backends: &[(String, Address)]) {
    match (learnt, layers.is_given("gateway.backend")) {
        (false, false) => layers.refuse(
            "none of gateway.join, gateway.store and gateway.backend is set: a gateway learns its members (--join 10.0.0.1:7400, \
             --store sqlite:PATH) or is told them (--backend a=127.0.0.1:9001)",
        ),
        (true, true) => {
            layers.refuse("gateway.backend is set, and so is gateway.join or gateway.store: members are either learnt or fixed");
        }
        _ => {}
    }
    for key in ["gateway.cluster", "gateway.secret", "gateway.namespace", "gateway.danger_plain_peers"] {
        if layers.is_given(key) && !learnt {
            layers.refuse(format!("{key} is set, and neither gateway.join nor gateway.store is: fixed members are of no cluster"));
        }
    }
    let mut names: Vec<&str> = backends.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        layers.refuse(format!("gateway.backend names `{}` twice, and a name is one member's", pair[0]));
    }
}
