//! `[demo]`.

use crate::config::units::{self, Durability};
use crate::config::{Errors, Layers, Section, Setting};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

pub(crate) const SECTION: Section = Section {
    name: "demo",
    about: "A shop on several nodes, on this machine, with buttons that kill them",
    settings: &[
        Setting::one("demo.listen", "ADDR", Some("127.0.0.1:8080"), "Where the page is"),
        Setting::one("demo.nodes", "N", Some("3"), "How many nodes"),
        Setting::one("demo.store", "URL", None, "sqlite:PATH or none; otherwise SQLite in a temporary folder"),
        Setting::one("demo.durability", "D", Some("backup(1)"), "owner, backup(N) or store"),
        Setting::one("demo.state", "FILE", None, "A file that says what is where, kept true while it runs"),
        Setting::one("demo.visitors", "N", Some("200"), "How many other shoppers"),
        Setting::switch("demo.script", "false", "Play it without a person, and judge it"),
        Setting::one("demo.seconds", "S", Some("30"), "How long the script takes, at least"),
        Setting::one("demo.json", "FILE", None, "Where the script writes its table"),
        Setting::switch("demo.danger_public", "false", "Listen where others can press the buttons, too"),
    ],
};

/// The settings of `outlive demo`.
#[derive(Debug)]
pub(crate) struct DemoConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) nodes: usize,
    pub(crate) store: Option<String>,
    pub(crate) durability: String,
    pub(crate) state: Option<PathBuf>,
    pub(crate) visitors: usize,
    pub(crate) script: bool,
    pub(crate) seconds: u64,
    pub(crate) json: Option<PathBuf>,
}

impl DemoConfig {
    pub(crate) fn new(mut layers: Layers) -> Result<DemoConfig, Errors> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let path = |text: &str| if text.is_empty() { Err("must name a file".to_owned()) } else { Ok(PathBuf::from(text)) };
        let listen = layers.required("demo.listen", loopback, units::address);
        let nodes = layers.required("demo.nodes", 3, |text| units::number(text, 1, 16));
        let durability = layers.required("demo.durability", Durability::Backup(1), units::durability);
        let config = DemoConfig {
            listen,
            nodes: usize::try_from(nodes).unwrap_or(3),
            store: layers.optional("demo.store", store),
            durability: text_of(durability),
            state: layers.optional("demo.state", path),
            visitors: usize::try_from(layers.required("demo.visitors", 200, |text| units::number(text, 0, 10_000))).unwrap_or(200),
            script: layers.switch("demo.script"),
            seconds: layers.required("demo.seconds", 30, |text| units::number(text, 5, 86_400)),
            json: layers.optional("demo.json", path),
        };
        if !listen.ip().is_loopback() && !layers.switch("demo.danger_public") {
            layers.refuse(format!("demo.listen is {listen}, where others can press the buttons, and demo.danger_public is not set"));
        }
        if let Durability::Backup(copies) = durability
            && u64::from(copies) >= nodes
        {
            layers.refuse(format!("demo.durability is backup({copies}), and demo.nodes is {nodes}: a copy needs another node"));
        }
        if durability == Durability::Store && config.store.as_deref() == Some("none") {
            layers.refuse("demo.durability is store, and demo.store is none");
        }
        if config.script && config.visitors == 0 {
            layers.refuse("demo.visitors is 0, and a script needs somebody who shops");
        }
        if config.script && nodes < 2 {
            layers.refuse(format!("demo.nodes is {nodes}, and a script that kills one needs another"));
        }
        for key in ["demo.json", "demo.seconds"] {
            if layers.is_given(key) && !config.script {
                layers.refuse(format!("{key} is set, and demo.script is not: only the script writes a table and ends by itself"));
            }
        }
        layers.finish(config)
    }
}

fn text_of(durability: Durability) -> String {
    match durability {
        Durability::Owner => "owner".to_owned(),
        Durability::Backup(copies) => format!("backup({copies})"),
        Durability::Store => "store".to_owned(),
    }
}

fn store(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(text.to_owned()),
        None if text == "none" => Ok(text.to_owned()),
        _ => Err("must be none or sqlite:PATH: the nodes are processes of their own".to_owned()),
    }
}
