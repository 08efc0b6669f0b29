//! What an application's mistake, or a node's death, writes into the log of a node. A process of its own, because a log is a process's.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

use support::log::Log;
use support::{app, browser, cluster, insist, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_one_line_that_says_whose_and_how_much_and_names_no_session() {
    let log = Log::of_the_process();
    let mut nodes = cluster("loss-log", 2, &["durability=owner", "backups=0", "lost_after=0s"]).await;
    let visitors: Vec<_> = (0..5).map(|_| browser(app(&nodes[0]))).collect();
    for visitor in &visitors {
        visitor.get("/").await;
        visitor.get("/").await;
    }
    nodes.remove(0).shutdown_now();
    for visitor in &visitors {
        insist(&support::at(visitor, app(&nodes[0])), "/read").await;
    }
    let said = || log.lines("acknowledged changes are lost");
    let count = |line: &str, field: &str| {
        let text = line.split_once(&format!("{field}=")).unwrap().1;
        text.split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let all = |field: &str| said().iter().map(|line| count(line, field)).sum::<u32>();
    until("all are counted", || all("sessions") == 5).await;
    assert_eq!(all("versions"), 10);
    assert!(
        said().len() <= 5 && said().iter().all(|line| line.contains("ERROR") && line.contains("owner=\"a\" level=owner")),
        "{:?}",
        said()
    );
}
