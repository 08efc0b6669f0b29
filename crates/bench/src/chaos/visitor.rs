//! A client: it appends, reads, sets two attributes at once, logs out, and goes on asking with the cookies of sessions that have ended.

use super::browser::{Answer, Asked, Browser, Jar, NoAnswer};
use super::ledger::Ledger;
use super::tally::{Shared, Violation};
use core::time::Duration;
use rand::RngExt as _;
use rand_pcg::Pcg32;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::{Instant, sleep};

/// Ended sessions that a client goes on asking for.
const ENDED_KEPT: usize = 8;
/// Appends after which it thinks of logging out.
const LONG: usize = 60;
/// How often it tries to look at its session at the end.
const LAST_TRIES: usize = 60;

struct Visitor {
    index: usize,
    sessions: u32,
    browser: Browser,
    jar: Jar,
    ledger: Ledger,
    ended: VecDeque<Jar>,
    shared: Arc<Shared>,
    rng: Pcg32,
}

/// Visits until it is told to stop; then it reads its session once more.
pub(super) async fn visit(index: usize, browser: Browser, shared: Arc<Shared>, rng: Pcg32) {
    let ledger = Ledger::new(format!("c{index}s0"));
    let mut visitor = Visitor { index, sessions: 0, browser, jar: Jar::default(), ledger, ended: VecDeque::new(), shared, rng };
    while !visitor.shared.stop.load(Ordering::Relaxed) {
        visitor.turn().await;
        let pause = visitor.rng.random_range(0..20);
        sleep(Duration::from_millis(pause)).await;
    }
    for _ in 0..LAST_TRIES {
        if visitor.read().await {
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
    visitor.shared.violation(Violation::Window, &format!("client {index} could not read its session at the end"));
}

impl Visitor {
    async fn turn(&mut self) {
        if self.shared.is_behind(self.index) {
            return self.append(0).await;
        }
        match self.rng.random_range(0..100) {
            0..15 => drop(self.read().await),
            15..20 if !self.jar.is_empty() => self.set_both().await,
            20..25 if !self.ended.is_empty() => self.ask_for_ended().await,
            25..27 if self.ledger.appends() > LONG => self.log_out().await,
            // A handler that is still running when its session moves.
            27..30 if !self.jar.is_empty() => {
                let ms = self.rng.random_range(100..2000);
                self.append(ms).await;
            }
            _ => self.append(0).await,
        }
    }

    /// One request, counted. Who gets no good answer pauses a little.
    async fn ask(&mut self, path: &str) -> Asked {
        let began = Instant::now();
        let asked = self.browser.ask(path, &mut self.jar, &mut self.rng).await;
        self.note(&asked, path, began.elapsed()).await;
        asked
    }

    async fn note(&self, asked: &Asked, path: &str, took: Duration) {
        self.shared.count(|tally| match asked {
            Ok(answer) if answer.is_ok() => tally.slowest = tally.slowest.max(took),
            Ok(answer) if answer.is_refused() => tally.refused += 1,
            Ok(_) => tally.unknown += 1,
            Err(NoAnswer::NoConnection) => tally.unconnected += 1,
            Err(NoAnswer::Broken) => tally.unanswered += 1,
        });
        if let Ok(answer) = asked {
            self.look_for_loss(answer, path);
        }
        if !asked.as_ref().is_ok_and(Answer::is_ok) {
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn look_for_loss(&self, answer: &Answer, path: &str) {
        if answer.value("lost") == Some("1") {
            self.shared.violation(Violation::Lost, &format!("client {}: {path}: {}", self.index, answer.body.trim()));
        }
    }

    fn report(&self, found: impl IntoIterator<Item = super::ledger::Found>) {
        for (kind, what) in found {
            self.shared.violation(kind, &what);
        }
    }

    async fn append(&mut self, ms: u64) {
        let (value, epoch) = (self.ledger.draw(), self.shared.epoch.load(Ordering::SeqCst));
        let path = format!("/append?v={value}&ms={ms}");
        let asked = if ms == 0 { self.ask(&path).await } else { self.ask_slowly(&path).await };
        match asked {
            Ok(answer) if answer.is_ok() => {
                let length = answer.value("len").and_then(|n| n.parse().ok()).unwrap_or(0);
                let found = self.ledger.acknowledged(value, length);
                self.report(found);
                self.shared.answered(self.index, epoch, answer.header("outcome"));
                self.shared.count(|tally| tally.appends += 1);
            }
            Ok(answer) if answer.is_refused() => self.ledger.refused(value),
            Err(NoAnswer::NoConnection) => self.ledger.refused(value),
            Ok(_) | Err(NoAnswer::Broken) => self.ledger.unknown(value),
        }
    }

    /// A request whose handler takes its time. If a node goes meanwhile, another request says when the session has its copies again.
    async fn ask_slowly(&mut self, path: &str) -> Asked {
        let (shared, index, began) = (&*self.shared, self.index, Instant::now());
        let wanted = || shared.is_behind(index).then(|| shared.epoch.load(Ordering::SeqCst));
        let heard = |epoch, answer: &Answer| {
            if answer.is_ok() {
                shared.answered(index, epoch, answer.header("outcome"));
            }
        };
        let asked = self.browser.ask_meanwhile(path, &mut self.jar, &mut self.rng, "/inc", wanted, heard).await;
        let handler = path.rsplit_once("ms=").and_then(|(_, ms)| ms.parse().ok()).map_or(Duration::ZERO, Duration::from_millis);
        self.note(&asked, path, began.elapsed().saturating_sub(handler)).await;
        asked
    }

    /// Reads the list; whether there was an answer.
    async fn read(&mut self) -> bool {
        let Some(answer) = self.ask("/log").await.ok().filter(Answer::is_ok) else { return false };
        let found = self.ledger.read(answer.value("log").unwrap_or_default());
        self.report(found);
        self.shared.count(|tally| tally.reads += 1);
        true
    }

    /// Sets two attributes in two requests at once: both must stick.
    async fn set_both(&mut self) {
        let (a, b) = (self.ledger.draw(), self.ledger.draw());
        let paths = [format!("/put?k=a&v={a}&ms=20"), format!("/put?k=b&v={b}&ms=20")];
        let began = Instant::now();
        let answers = self.browser.ask_both([&paths[0], &paths[1]], &mut self.jar, &mut self.rng).await;
        let took = began.elapsed();
        for ((attribute, value), (asked, path)) in [a, b].into_iter().enumerate().zip(answers.iter().zip(&paths)) {
            self.note(asked, path, took).await;
            match asked {
                Ok(answer) if answer.is_ok() => self.ledger.set(attribute, value, true),
                Ok(answer) if answer.is_refused() => {}
                Err(NoAnswer::NoConnection) => {}
                Ok(_) | Err(NoAnswer::Broken) => self.ledger.set(attribute, value, false),
            }
        }
        self.shared.count(|tally| tally.pairs += 1);
        if let Some(answer) = self.ask("/who").await.ok().filter(Answer::is_ok) {
            let found = self.ledger.read_attributes([answer.value("a"), answer.value("b")]);
            self.report(found);
        }
    }

    async fn log_out(&mut self) {
        let before = self.jar.clone();
        let answer = self.ask("/invalidate").await;
        if answer.is_ok_and(|answer| answer.is_ok() && answer.value("ended") == Some("Everywhere")) {
            // Only what was confirmed is promised: a node that was cut off may serve it for a while.
            self.ended.push_back(before);
            if self.ended.len() > ENDED_KEPT {
                self.ended.pop_front();
            }
            self.shared.count(|tally| tally.logouts += 1);
        }
        self.sessions += 1;
        self.jar = Jar::default();
        self.ledger = Ledger::new(format!("c{}s{}", self.index, self.sessions));
    }

    /// A session that has ended answers nothing, whatever happened since.
    async fn ask_for_ended(&mut self) {
        let at = self.rng.random_range(0..self.ended.len());
        let Some(mut jar) = self.ended.get(at).cloned() else { return };
        let answer = self.browser.ask("/log", &mut jar, &mut self.rng).await;
        self.shared.count(|tally| tally.ended_asked += 1);
        if let Some(answer) = answer.ok().filter(Answer::is_ok) {
            self.look_for_loss(&answer, "/log with the cookie of a session that has ended");
            if answer.value("log").is_some_and(|log| !log.is_empty()) {
                self.shared.violation(Violation::Resurrected, &format!("client {}: {}", self.index, answer.body.trim()));
            }
        }
    }
}
