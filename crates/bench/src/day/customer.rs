//! A customer: fills a cart by requests, by a socket and by uploads, steps through a wizard, watches its cart in a stream of events,
//! signs in and out; and knows what must be there.

use crate::chaos::Client;
use crate::chaos::browser::{Answer, Asked, Browser, Jar, NoAnswer};
use crate::chaos::ledger::{Found, Ledger};
use crate::chaos::tally::{Shared, Violation};
use core::time::Duration;
use rand::RngExt as _;
use rand_pcg::Pcg32;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::{Instant, sleep};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest as _;

/// Steps of the wizard.
const STEPS: usize = 5;
/// Things after which a customer thinks of going home.
const LONG: usize = 80;
/// How often it tries to look at its cart at the end.
const LAST_TRIES: usize = 120;
/// Things that a customer does at one door.
const STAYS: core::ops::Range<usize> = 20..60;
const PATIENCE: Duration = Duration::from_secs(15);

/// How often what was done.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; NAMES.len()]);

const NAMES: [&str; 10] = [
    "things in carts, by request",
    "things in carts, by socket",
    "things in carts, by upload",
    "sockets",
    "streams of events",
    "steps of wizards",
    "sign-ins",
    "sign-outs",
    "carts read and checked",
    "changes of doors",
];

#[derive(Clone, Copy)]
enum Did {
    Added,
    BySocket,
    Uploaded,
    Socket,
    Stream,
    Step,
    Login,
    Logout,
    Read,
    Door,
}

impl Counts {
    pub(super) fn rows(&self) -> Vec<(&'static str, u64)> {
        NAMES.iter().zip(&self.0).map(|(name, n)| (*name, n.load(Ordering::Relaxed))).collect()
    }
}

/// See the module.
pub(super) struct Customer {
    index: usize,
    sessions: u32,
    doors: Vec<SocketAddr>,
    /// How many more things it does before it comes by another door.
    stays: usize,
    browser: Browser,
    jar: Jar,
    ledger: Ledger,
    /// The answers of the wizard, in order; `None`: what is there is not known.
    wizard: Option<Vec<String>>,
    shared: Arc<Shared>,
    counts: Arc<Counts>,
    rng: Pcg32,
}

impl Customer {
    pub(super) fn new(index: usize, doors: Vec<SocketAddr>, shared: Arc<Shared>, counts: Arc<Counts>, rng: Pcg32) -> Customer {
        let browser = Browser::new(vec![doors[index % doors.len()]], Client::Sticky);
        let ledger = Ledger::new(format!("c{index}s0"));
        let (jar, wizard) = (Jar::default(), Some(Vec::new()));
        Customer { index, sessions: 0, doors, stays: STAYS.start, browser, jar, ledger, wizard, shared, counts, rng }
    }

    /// Shops until it is told to stop; then it reads its cart once more.
    pub(super) async fn shop(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.turn().await;
            let pause = self.rng.random_range(0..100);
            sleep(Duration::from_millis(pause)).await;
        }
        for _ in 0..LAST_TRIES {
            if self.read().await {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        self.shared.violation(Violation::Window, &format!("customer {} could not read its cart at the end", self.index));
    }

    /// With the same cookies through another door, by connections of its own: as from a train into a station.
    fn change_doors(&mut self) {
        let here = self.browser.door(&mut self.rng);
        let others: Vec<SocketAddr> = self.doors.iter().copied().filter(|door| *door != here).collect();
        if others.is_empty() {
            return;
        }
        self.browser = Browser::new(vec![others[self.rng.random_range(0..others.len())]], Client::Sticky);
        self.did(Did::Door);
    }

    async fn turn(&mut self) {
        self.stays = self.stays.saturating_sub(1);
        if self.stays == 0 {
            self.stays = self.rng.random_range(STAYS);
            self.change_doors();
        }
        let known = self.ledger.appends() > 0;
        match self.rng.random_range(0..100) {
            0..20 => drop(self.read().await),
            20..45 => self.step().await,
            45..52 if known => self.socket().await,
            52..59 if known => self.stream().await,
            59..67 => self.upload().await,
            67..70 if known => self.log_in().await,
            70..73 if self.ledger.appends() > LONG => self.log_out().await,
            _ => self.add().await,
        }
    }

    fn did(&self, what: Did) {
        if let Some(count) = self.counts.0.get(what as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

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
            self.look_for_loss(&answer.body, path);
        }
        if !asked.as_ref().is_ok_and(Answer::is_ok) {
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn look_for_loss(&self, line: &str, path: &str) {
        if line.split_ascii_whitespace().any(|word| word == "lost=1") {
            self.shared.violation(Violation::Lost, &format!("customer {}: {path}: {}", self.index, line.trim()));
        }
    }

    fn report(&self, found: impl IntoIterator<Item = Found>) {
        for (kind, what) in found {
            self.shared.violation(kind, &what);
        }
    }

    /// What became of a thing for the cart.
    fn settle(&mut self, value: String, asked: &Asked, did: Did) {
        match asked {
            Ok(answer) if answer.is_ok() => {
                let length = answer.value("len").and_then(|n| n.parse().ok()).unwrap_or(0);
                let found = self.ledger.acknowledged(value, length);
                self.report(found);
                self.did(did);
            }
            Ok(answer) if answer.is_refused() => self.ledger.refused(value),
            Err(NoAnswer::NoConnection) => self.ledger.refused(value),
            Ok(_) | Err(NoAnswer::Broken) => self.ledger.unknown(value),
        }
    }

    async fn add(&mut self) {
        let value = self.ledger.draw();
        let asked = self.ask(&format!("/append?v={value}")).await;
        self.settle(value, &asked, Did::Added);
    }

    async fn upload(&mut self) {
        let (value, began) = (self.ledger.draw(), Instant::now());
        let path = format!("/upload?v={value}");
        let size = 1 << self.rng.random_range(10..20);
        let asked = self.browser.upload(&path, vec![b'x'; size].into(), &mut self.jar, &mut self.rng).await;
        self.note(&asked, &path, began.elapsed()).await;
        self.settle(value, &asked, Did::Uploaded);
    }

    async fn read(&mut self) -> bool {
        let Some(answer) = self.ask("/log").await.ok().filter(Answer::is_ok) else { return false };
        let found = self.ledger.read(answer.value("log").unwrap_or_default());
        self.report(found);
        self.did(Did::Read);
        true
    }

    /// The next step of the wizard: all that was answered before must be there.
    async fn step(&mut self) {
        let n = self.wizard.as_ref().map_or(0, |answers| answers.len() % STEPS);
        let value = self.ledger.draw();
        let mut expected = self.wizard.take().filter(|_| n > 0).unwrap_or_default();
        match self.ask(&format!("/wizard?n={n}&v={value}")).await {
            Ok(answer) if answer.is_ok() => {
                expected.push(value);
                let wanted: Vec<String> = expected.iter().enumerate().map(|(n, value)| format!("{n}:{value}")).collect();
                let got = answer.value("steps").unwrap_or_default();
                if got != wanted.join(",") {
                    let what = format!("customer {}: the wizard has {got}, and {} was answered", self.index, wanted.join(","));
                    self.shared.violation(Violation::Attribute, &what);
                }
                self.wizard = Some(expected);
                self.did(Did::Step);
            }
            Ok(answer) if answer.is_refused() => self.wizard = Some(expected).filter(|answers| !answers.is_empty()),
            Err(NoAnswer::NoConnection) => self.wizard = Some(expected).filter(|answers| !answers.is_empty()),
            // It may have been done: a new form.
            Ok(_) | Err(NoAnswer::Broken) => {}
        }
    }

    /// Watches the cart for a while: it is never shown with less than is known to be there.
    async fn stream(&mut self) {
        let length = Duration::from_millis(self.rng.random_range(500..3000));
        let mut least = self.ledger.appends();
        let Ok(lines) = self.browser.listen("/events", length, &mut self.jar, &mut self.rng).await else { return };
        for line in &lines {
            let got: usize = line.parse().unwrap_or(0);
            if got < least {
                let what = format!("customer {}: a stream shows {got} things, and {least} were there", self.index);
                self.shared.violation(Violation::WentBack, &what);
            }
            least = least.max(got);
        }
        if !lines.is_empty() {
            self.did(Did::Stream);
        }
    }

    /// Fills the cart by a socket, which stays open between two things.
    async fn socket(&mut self) {
        let values: Vec<String> = (0..self.rng.random_range(2..12)).map(|_| self.ledger.draw()).collect();
        let pause = Duration::from_millis(self.rng.random_range(20..400));
        let (door, cookies) = (self.browser.door(&mut self.rng), self.jar.header().unwrap_or_default());
        let talk = tokio::task::spawn_blocking(move || talk(door, &cookies, values, pause)).await;
        let Ok(said) = talk else { return };
        if said.iter().any(|(_, said)| *said != Told::NotSent) {
            self.did(Did::Socket);
        }
        for (value, told) in said {
            match told {
                Told::NotSent => self.ledger.refused(value),
                Told::Nothing => {
                    self.shared.count(|tally| tally.unanswered += 1);
                    self.ledger.unknown(value);
                }
                Told::Line(line) => {
                    self.look_for_loss(&line, "/socket");
                    let word = |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
                    match word("outcome") {
                        Some("refused") => self.ledger.refused(value),
                        Some("unknown") | None => self.ledger.unknown(value),
                        Some(_) => {
                            let found = self.ledger.acknowledged(value, word("len").and_then(|n| n.parse().ok()).unwrap_or(0));
                            self.report(found);
                            self.did(Did::BySocket);
                        }
                    }
                }
            }
        }
    }

    async fn log_in(&mut self) {
        let before = self.jar.clone();
        match self.ask(&format!("/login?user=c{}", self.index)).await {
            Ok(answer) if answer.is_ok() => {
                self.did(Did::Login);
                self.ask_with_ended(before).await;
            }
            Ok(answer) if answer.is_refused() => {}
            Err(NoAnswer::NoConnection) => {}
            // The answer may have carried the only copy of the new id.
            Ok(_) | Err(NoAnswer::Broken) => self.begin_anew(),
        }
    }

    async fn log_out(&mut self) {
        let before = self.jar.clone();
        let answer = self.ask("/invalidate").await;
        self.begin_anew();
        if answer.is_ok_and(|answer| answer.is_ok() && answer.value("ended") == Some("Everywhere")) {
            self.did(Did::Logout);
            self.ask_with_ended(before).await;
        }
    }

    fn begin_anew(&mut self) {
        self.sessions += 1;
        (self.jar, self.wizard) = (Jar::default(), Some(Vec::new()));
        self.ledger = Ledger::new(format!("c{}s{}", self.index, self.sessions));
    }

    /// An id that has ended answers nothing.
    async fn ask_with_ended(&mut self, mut jar: Jar) {
        let answer = self.browser.ask("/log", &mut jar, &mut self.rng).await;
        if let Some(answer) = answer.ok().filter(Answer::is_ok)
            && answer.value("log").is_some_and(|log| !log.is_empty())
        {
            self.shared.violation(Violation::Resurrected, &format!("customer {}: {}", self.index, answer.body.trim()));
        }
    }
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    NotSent,
    /// It was sent, and the socket broke.
    Nothing,
    Line(String),
}

/// Sends one value after the other, and waits for the answer of each.
fn talk(door: SocketAddr, cookies: &str, values: Vec<String>, pause: Duration) -> Vec<(String, Told)> {
    let mut socket = connect(door, cookies);
    let mut said = Vec::new();
    for value in values {
        let Some(open) = &mut socket else {
            said.push((value, Told::NotSent));
            continue;
        };
        let told = match open.send(Message::text(value.as_str())) {
            // What was written before the error may have arrived.
            Err(_) => Told::Nothing,
            Ok(()) => loop {
                match open.read() {
                    Ok(Message::Text(text)) => break Told::Line(text.to_string()),
                    // The node leaves: the message may have come before it said so.
                    Ok(Message::Close(_)) | Err(_) => break Told::Nothing,
                    Ok(_) => {}
                }
            },
        };
        if told == Told::Nothing {
            socket = None;
        }
        said.push((value, told));
        std::thread::park_timeout(pause);
    }
    if let Some(mut open) = socket {
        let _ = open.close(None);
    }
    said
}

fn connect(door: SocketAddr, cookies: &str) -> Option<tungstenite::WebSocket<TcpStream>> {
    let stream = TcpStream::connect(door).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let mut request = format!("ws://{door}/socket").into_client_request().ok()?;
    request.headers_mut().insert("cookie", cookies.parse().ok()?);
    Some(tungstenite::client(request, stream).ok()?.0)
}
