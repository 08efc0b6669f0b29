//! What a client gets when an exchange does not go by the book: one side closes, half closes or resets its connection, at each stage of
//! it. Every case is played directly against a server, through the gateway, through HAProxy and through nginx.

mod cases;
mod fronts;
mod play;

use crate::measure::Table;
use cases::Case;
use core::time::Duration;
use fronts::{Front, Kind};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each case is played.
    #[arg(long, default_value_t = 25)]
    rounds: u32,
    /// Only cases whose names contain this.
    #[arg(long)]
    only: Option<String>,
}

/// How long to wait for what a program may never do.
fn patience(kind: Kind) -> Duration {
    match kind {
        Kind::Gateway | Kind::Direct => Duration::from_secs(60),
        Kind::HaProxy | Kind::Nginx => Duration::from_secs(1),
    }
}

/// Prints the table.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut table = Table::new(&["", "good is", "directly", "gateway", "HAProxy", "nginx"]);
    for case in cases::all().iter().filter(|case| args.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()))) {
        let mut cells = vec![case.good.to_owned()];
        for kind in Kind::ALL {
            cells.push(count(case, kind, args.rounds).await?.to_string());
        }
        table.row(case.name, &cells);
    }
    println!("Good outcomes of {} each. {}; {}.\n", args.rounds, fronts::version("haproxy", "-v")?, fronts::version("nginx", "-v")?);
    table.print();
    Ok(())
}

/// In how many of `rounds` the outcome was good.
async fn count(case: &Case, kind: Kind, rounds: u32) -> anyhow::Result<u32> {
    let stage = play::Stage::new(&case.server).await?;
    let front = Front::start(kind, stage.addr).await?;
    let mut good = 0;
    for _ in 0..rounds {
        let outcome = stage.play(&case.client, front.addr, case.awaits, patience(kind)).await?;
        if (case.judge)(&outcome) {
            good += 1;
        } else if std::env::var_os("OUTLIVE_BENCH_SHOW").is_some() {
            eprintln!("{} {kind:?}: {outcome:?}", case.name);
        }
    }
    front.stop().await;
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn through_the_gateway_every_ending_of_an_exchange_is_a_good_one() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bad: Vec<_> = runtime.block_on(async {
            let mut bad = Vec::new();
            for case in cases::all() {
                let good = count(&case, Kind::Gateway, 3).await.unwrap();
                bad.extend((good < 3).then_some((case.name, good)));
            }
            bad
        });
        assert!(bad.is_empty(), "of 3 each: {bad:?}");
    }

    /// The others are played for what they are, too: a list that is good for the gateway alone would compare nothing.
    #[test]
    fn haproxy_and_nginx_are_there_and_play_the_same_list() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            for case in cases::all().iter().filter(|case| case.name.starts_with("a body ends") || case.name == "two requests at once") {
                for kind in [Kind::HaProxy, Kind::Nginx] {
                    assert_eq!(count(case, kind, 2).await.unwrap(), 2, "{}, {kind:?}", case.name);
                }
            }
        });
    }

    #[test]
    fn the_page_about_the_gateway_has_the_table_of_this_list_and_the_gateway_is_good_each_time() {
        let page = include_str!("../../../docs/gateway.md");
        for case in cases::all() {
            let row = page.lines().find(|line| line.starts_with(&format!("| {} |", case.name)));
            let row = row.unwrap_or_else(|| panic!("`{}` is not in docs/gateway.md: run `outlive-bench ends`", case.name));
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            assert_eq!((cells[2], cells[4]), (case.good, "25"), "{row}");
        }
    }
}
