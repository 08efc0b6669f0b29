//! The other shoppers: each knows what must be in its cart, and looks after every answer.
//!
//! A shopper sends one request at a time and repeats it until it is answered, with the same name, so that the shop counts it once.
//! Therefore there is exactly one right answer to each request, and everything else is counted as what it is.

use crate::clock::wall_ms;
use crate::demo::book::{Model, Step, differences};
use crate::demo::client::{self, Answer, Connections, Jar};
use crate::demo::shop::{CATALOGUE, View};
use crate::demo::tally::{Kind, Tally};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long one request is repeated before the shopper gives it up.
const REPEAT: Duration = Duration::from_secs(45);
/// Ids that have ended and are tried again now and then.
const ENDED_KEPT: usize = 3;

/// What all shoppers share.
#[derive(Clone)]
pub(crate) struct Crowd {
    pub(crate) gateway: SocketAddr,
    pub(crate) connections: Connections,
    pub(crate) tally: Arc<Mutex<Tally>>,
    /// The nodes' names, in the order of the page.
    pub(crate) nodes: Arc<[String]>,
    /// Time between two requests of a shopper, on average.
    pub(crate) pause: Duration,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Sends `count` shoppers in. They leave when the crowd is told to stop; then this is done.
pub(crate) async fn shop(crowd: Crowd, count: usize) {
    let mut all = tokio::task::JoinSet::new();
    for number in 0..count {
        let visitor = Visitor::new(crowd.clone(), number);
        all.spawn(visitor.run());
    }
    while all.join_next().await.is_some() {}
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    /// The shop says that something is gone, and it is.
    LostWithNotice(String),
    LostSilently(String),
    Stale(String),
}

/// Judges an answer. `sure`: the outcome of everything before is known.
fn judge(expected: &Model, alternative: Option<&Model>, view: &View) -> Verdict {
    let got = Model::of(view);
    if got == *expected || alternative == Some(&got) {
        return Verdict::Right;
    }
    let what = differences(expected, &got);
    if view.lost {
        Verdict::LostWithNotice(what)
    } else if got.version < expected.version && got.version > 0 {
        Verdict::Stale(what)
    } else {
        Verdict::LostSilently(what)
    }
}

struct Visitor {
    crowd: Crowd,
    me: String,
    random: u64,
    jar: Jar,
    node: Option<i8>,
    model: Model,
    /// What may be there instead: the request that was given up may have been done.
    alternative: Option<Model>,
    steps: u64,
    ended: VecDeque<Jar>,
}

impl Visitor {
    fn new(crowd: Crowd, number: usize) -> Visitor {
        Visitor {
            crowd,
            me: format!("shopper {number}"),
            random: number as u64,
            jar: Jar::default(),
            node: None,
            model: Model::default(),
            alternative: None,
            steps: 0,
            ended: VecDeque::new(),
        }
    }

    /// SplitMix64, seeded by the shopper's number: spreads what they do, guards nothing.
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    async fn run(mut self) {
        let mut stop = self.crowd.stop.clone();
        while !*stop.borrow() {
            let percent = self.random(200) as u32;
            let pause = self.crowd.pause * percent / 100;
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if self.steps % 16 == 7
                && let Some(ended) = self.ended.pop_front()
            {
                self.look_again(ended).await;
            }
            let step = self.choose();
            self.take(step).await;
        }
    }

    fn choose(&mut self) -> Step {
        let (dice, thing) = (self.random(100), self.random(CATALOGUE.len() as u64) as usize);
        let sku = CATALOGUE[thing].0;
        let things: u32 = self.model.cart.values().sum();
        match dice {
            _ if self.model.note.is_none() => Step::Sign,
            0 if things > 0 => Step::Logout,
            1..=2 if self.model.user.is_none() => Step::Login,
            3..=42 => Step::Look,
            // A cart that has grown shrinks again.
            43..=57 if self.model.cart.contains_key(sku) => Step::Remove(sku),
            _ if things > 40 && self.model.cart.contains_key(sku) => Step::Remove(sku),
            _ => Step::Add(sku),
        }
    }

    /// Asks until there is an answer, and looks at it.
    async fn take(&mut self, step: Step) {
        self.steps += 1;
        let me = self.me.replace(' ', "+");
        let once = self.steps;
        let (method, path) = match step {
            Step::Look => (Method::GET, "/shop/api/cart".to_owned()),
            Step::Add(sku) => (Method::PUT, format!("/shop/api/add?sku={sku}&once={once}")),
            Step::Remove(sku) => (Method::PUT, format!("/shop/api/remove?sku={sku}&once={once}")),
            Step::Sign => (Method::PUT, format!("/shop/api/note?text={me}")),
            Step::Login => (Method::POST, format!("/shop/api/login?user={me}")),
            Step::Logout => (Method::POST, "/shop/api/logout".to_owned()),
        };
        let before = self.jar.clone();
        let until = Instant::now() + REPEAT;
        // An answer to a sign-in or a sign-out that did not arrive may have carried the only copy of the new id.
        let mut id_in_doubt = false;
        loop {
            match self.once(&method, &path).await {
                Some((view, took)) => {
                    self.look(step, &view, took, id_in_doubt);
                    break;
                }
                None if *self.crowd.stop.borrow() || Instant::now() >= until => {
                    self.alternative = Some(self.model.after(step, &self.me));
                    return;
                }
                None => id_in_doubt |= matches!(step, Step::Login | Step::Logout),
            }
        }
        if matches!(step, Step::Login | Step::Logout) && !id_in_doubt && before != self.jar {
            if self.ended.len() == ENDED_KEPT {
                self.ended.pop_front();
            }
            self.ended.push_back(before.clone());
            self.look_again(before).await;
        }
    }

    /// One try. `None`: not answered, and the time that was asked for has been waited.
    async fn once(&mut self, method: &Method, path: &str) -> Option<(View, Duration)> {
        let start = Instant::now();
        let mut jar = self.jar.clone();
        let answer = client::ask(&self.crowd.connections, self.crowd.gateway, method, path, &mut jar).await;
        let took = start.elapsed();
        if let Some(answer) = &answer
            && answer.status == StatusCode::OK
            && let Ok(view) = serde_json::from_slice(&answer.body)
        {
            self.jar = jar;
            let node = self.node_of(answer);
            let before = std::mem::replace(&mut self.node, node);
            self.crowd.tally.lock().answer(wall_ms(), took, node, before, Kind::Good);
            return Some((view, took));
        }
        let wait = answer.as_ref().and_then(Answer::retry_after);
        let kind = if wait.is_some() { Kind::Refused } else { Kind::Failed };
        self.crowd.tally.lock().answer(wall_ms(), took, None, self.node, kind);
        sleep(wait.unwrap_or(Duration::from_millis(100))).await;
        None
    }

    fn node_of(&self, answer: &Answer) -> Option<i8> {
        let name = answer.header("x-demo-node")?;
        self.crowd.nodes.iter().position(|node| node == name).and_then(|index| i8::try_from(index).ok())
    }

    fn look(&mut self, step: Step, view: &View, took: Duration, id_in_doubt: bool) {
        let expected = self.model.after(step, &self.me);
        let alternative = self.alternative.take().map(|model| model.after(step, &self.me));
        let mut verdict = judge(&expected, alternative.as_ref(), view);
        if id_in_doubt && view.version == 0 {
            verdict = Verdict::Right;
        }
        self.model = Model::of(view);
        let mut tally = self.crowd.tally.lock();
        let what = match verdict {
            Verdict::Right => return,
            Verdict::LostWithNotice(what) => {
                tally.totals.lost += 1;
                format!("lost, and said so: {what}")
            }
            Verdict::LostSilently(what) => {
                tally.totals.lost += 1;
                tally.totals.silent += 1;
                format!("lost: {what}")
            }
            Verdict::Stale(what) => {
                tally.totals.stale += 1;
                format!("older than seen: {what}")
            }
        };
        tally.wrong(wall_ms(), took, self.node);
        tally.name(format!("{}, after {step:?}: {what}", self.me));
    }

    /// An id that has ended must not answer with anything.
    async fn look_again(&mut self, ended: Jar) {
        let mut jar = ended.clone();
        let start = Instant::now();
        let Some(answer) = client::ask(&self.crowd.connections, self.crowd.gateway, &Method::GET, "/shop/api/cart", &mut jar).await else {
            return;
        };
        let Ok(view) = serde_json::from_slice::<View>(&answer.body) else { return };
        if answer.status == StatusCode::OK && Model::of(&view) != Model::default() {
            let node = self.node_of(&answer);
            let mut tally = self.crowd.tally.lock();
            tally.totals.resurrected += 1;
            tally.wrong(wall_ms(), start.elapsed(), node);
            tally.name(format!("{}: an id that had ended answered {}", self.me, differences(&Model::default(), &Model::of(&view))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(model: &Model) -> View {
        let Model { cart, version, user, note } = model.clone();
        View { cart, version, user, note, ..View::default() }
    }

    #[test]
    fn only_the_one_right_answer_is_right() {
        let empty = Model::default();
        let one = empty.after(Step::Sign, "7").after(Step::Add("bell"), "7");
        let two = one.after(Step::Add("bell"), "7");
        assert_eq!((two.cart["bell"], two.version, two.note.as_deref()), (2, 2, Some("7")));
        assert_eq!(judge(&two, None, &view(&two)), Verdict::Right);
        assert!(matches!(judge(&two, None, &view(&one)), Verdict::Stale(_)));
        assert_eq!(judge(&two, Some(&one), &view(&one)), Verdict::Right);
        assert!(matches!(judge(&two, None, &view(&empty)), Verdict::LostSilently(_)));
        assert!(matches!(judge(&two, None, &View { lost: true, ..view(&one) }), Verdict::LostWithNotice(_)));
        let doubled = two.after(Step::Add("bell"), "7");
        assert!(matches!(judge(&two, None, &view(&doubled)), Verdict::LostSilently(_)));
        let foreign = Model { note: Some("8".into()), ..two.clone() };
        assert!(matches!(judge(&two, None, &view(&foreign)), Verdict::LostSilently(_)));
    }
}
