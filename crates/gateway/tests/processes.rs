//! Members that are processes and die for real, under load.

#![allow(clippy::unwrap_used)]

mod support;

use http::Response;
use outlive_gateway::State;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::*;
use tokio::net::{TcpListener, TcpSocket};

const ROLE: &str = "OUTLIVE_GATEWAY_TEST_MEMBER";

/// Not a test of anything: what the processes below run, in this same binary. Without the variable it has no role to play.
#[test]
fn role_of_a_member() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (name, addr) = role.split_once('@').unwrap();
    let (name, addr): (String, SocketAddr) = (name.to_owned(), addr.parse().unwrap());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(addr).unwrap();
        let listener: TcpListener = socket.listen(256).unwrap();
        println!("ready {}", listener.local_addr().unwrap());
        let _backend = Backend::start_on(listener, move |_| {
            let name = name.clone();
            async move { Response::new(full(name)) }
        });
        std::future::pending::<()>().await;
    });
}

/// A member process; killed with the test.
struct Member {
    child: Child,
    addr: SocketAddr,
}

impl Member {
    fn start(name: &str, addr: SocketAddr) -> Member {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["role_of_a_member", "--exact", "--nocapture"])
            .env(ROLE, format!("{name}@{addr}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = loop {
            // The harness puts the test's name before the line.
            if let Some((_, addr)) = lines.next().unwrap().unwrap().split_once("ready ") {
                break addr.parse().unwrap();
            }
        };
        Member { child, addr }
    }

    /// SIGKILL: no farewell.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_members_under_load_loses_no_get_and_they_are_used_again_when_they_return() {
    let mut members = ["a", "b", "c"].map(|name| Member::start(name, anywhere()));
    let mut builder = gateway();
    for (name, member) in ["a", "b", "c"].into_iter().zip(&members) {
        builder = builder.member(name, member.addr);
    }
    let gateway = builder.start().await.unwrap();
    let (addr, stop, answered) = (gateway.local_addr(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = tokio::task::JoinSet::new();
    for visitor in 0..12 {
        let (stop, answered) = (stop.clone(), answered.clone());
        load.spawn(async move {
            let mut client = Client::connect(addr).await;
            let cookie = format!("OUTLIVESID={visitor}.{}", ["a", "b", "c"][visitor % 3]);
            while !stop.load(Ordering::Relaxed) {
                let (status, name) = client.text(request("GET", "/", &cookie, full(""))).await;
                assert_eq!(status, 200, "{name}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let goes_on = |what: &'static str| {
        let until = answered.load(Ordering::Relaxed) + 300;
        eventually(what, {
            let answered = answered.clone();
            move || answered.load(Ordering::Relaxed) >= until
        })
    };
    goes_on("load with all up").await;
    for (index, name) in [(1, "b"), (2, "c")] {
        members[index].kill();
        eventually("the death to be noticed", || member(&gateway, name).state == State::Down).await;
        goes_on("load with one down").await;
        let before = member(&gateway, name).requests;
        members[index] = Member::start(name, members[index].addr);
        eventually("its visitors to be back", || member(&gateway, name).requests > before + 20).await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = within("the load to end", load.join_next()).await {
        done.unwrap();
    }
    let stats = gateway.stats();
    assert!(stats.members[1].failures > 0 && stats.members[2].failures > 0, "the kills hit something: {stats:?}");
    assert_eq!(stats.members[0].failures, 0, "{stats:?}");
    assert!(stats.members.iter().all(|member| member.in_flight == 0), "{stats:?}");
}
