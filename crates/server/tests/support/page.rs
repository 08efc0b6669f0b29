//! The demo's page, and the truth about what it says: the processes, the words of the nodes, and what they answer themselves.

#![allow(clippy::disallowed_methods, reason = "what is said at a time is held against what was at that time")]

use super::browser::Browser;
use super::{Process, ask, eventually, json};
use serde_json::Value;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a page shows may be older than what is by so much, on a busy machine.
const BEHIND_MS: u64 = 3000;

/// A session that moved, as its new owner said.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) to: String,
    /// `copy`, `store`, `several`, `nothing`, or the name of a node.
    pub(crate) from: String,
}

impl Moved {
    /// How the page says where it came from.
    pub(crate) fn source(&self, before: &str) -> String {
        match self.from.as_str() {
            "copy" => "from its copy".into(),
            "store" => "from the store".into(),
            "several" => "merged of several copies".into(),
            "nothing" => "without anything of it".into(),
            node if node == before => format!("handed over by node {node}"),
            node => format!("from the copy of node {node}"),
        }
    }
}

/// What was said of an answer.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) sentence: String,
    pub(crate) took: Duration,
}

/// When each node's process was seen to live, or not, in ms since 1970.
type Lives = Arc<Mutex<Vec<(u64, String, bool)>>>;

/// The demo, its page in a browser, and whoever watches both.
pub(crate) struct Page {
    pub(crate) browser: Browser,
    addr: String,
    state: String,
    lives: Lives,
    stop: Arc<AtomicBool>,
    clicked: Cell<Duration>,
    _demo: Process,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// Whether a process runs: a child that ended and was not waited for does not.
fn runs(pid: &Value) -> bool {
    let stat = pid.as_i64().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stat.is_some_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

fn watch(state: &str, lives: &Lives, stop: &AtomicBool) {
    let mut before: Vec<(String, bool)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(text) = std::fs::read_to_string(state) {
            for node in json(&text)["nodes"].as_array().unwrap() {
                let seen = (node["name"].as_str().unwrap().to_owned(), runs(&node["pid"]));
                if !before.contains(&seen) {
                    before.retain(|(name, _)| *name != seen.0);
                    lives.lock().unwrap().push((now_ms(), seen.0.clone(), seen.1));
                    before.push(seen);
                }
            }
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

const RECORD: &str = "window.seen = []; const note = () => { \
    const text = `${document.getElementById('sentence').textContent} ${document.getElementById('hint').textContent}`; \
    if (window.seen.at(-1)?.[1] !== text) window.seen.push([Date.now(), text]); }; \
    for (const id of ['sentence', 'hint']) new MutationObserver(note).observe(document.getElementById(id), { childList: true, characterData: true, subtree: true }); \
    note();";

impl Page {
    pub(crate) fn open(name: &str, args: &[&str]) -> Page {
        let state = std::env::temp_dir().join(format!("outlive-page-{}-{name}.json", std::process::id())).display().to_string();
        let mut demo = Process::outlive(&[&["demo", "--listen", "127.0.0.1:0", "--state", &state], args].concat());
        let addr = demo.line_with("ready http://");
        let (lives, stop) = (Lives::default(), Arc::new(AtomicBool::new(false)));
        let watched = (state.clone(), lives.clone(), stop.clone());
        std::thread::spawn(move || watch(&watched.0, &watched.1, &watched.2));
        let browser = Browser::open(name);
        let page = Page { browser, addr, state, lives, stop, clicked: Cell::default(), _demo: demo };
        page.reload();
        page
    }

    pub(crate) fn reload(&self) {
        self.browser.go(&format!("http://{}/", self.addr));
        self.browser.script(RECORD);
    }

    // ---- what a person does ---------------------------------------------------------------------------------------------------------

    /// What is in the cart, as the page shows it.
    pub(crate) fn cart(&self) -> Value {
        self.browser.script("return [...document.querySelectorAll('#goods output')].map((o) => o.textContent).join(' ').trim()")
    }

    /// Adds a thing, and waits until the page shows another cart.
    #[track_caller]
    pub(crate) fn add(&self, thing: &str) {
        let (before, start) = (self.cart(), Instant::now());
        self.browser.click(&format!("button[aria-label='Add a {thing}']"));
        eventually("another cart", || (self.cart() != before).then_some(()));
        self.clicked.set(start.elapsed());
    }

    /// What the last `add` took, the browser and this test included.
    pub(crate) fn last_click(&self) -> Duration {
        self.clicked.get()
    }

    #[track_caller]
    pub(crate) fn act(&self, what: &str) {
        assert_eq!(ask(&self.addr, "POST", &format!("/act/{what}"), "", "").status, 202, "{what}");
    }

    /// Starts a node, and waits until it serves.
    #[track_caller]
    pub(crate) fn start(&self, node: &str) {
        eventually("it has ended", || (!self.node(node)["pid"].is_number()).then_some(()));
        self.act(&format!("nodes/{node}/start"));
        eventually("it is up", || (self.node(node)["state"] == "up").then_some(()));
    }

    /// Waits until a deployment, or a change of all nodes, has begun and ended.
    #[track_caller]
    pub(crate) fn until_idle(&self) {
        let button = || self.browser.script("return document.getElementById('deploy').disabled");
        eventually("it begins", || (button() == true || self.has_said("deployed") || self.has_said("other setting")).then_some(()));
        eventually("it is over", || (button() == false).then_some(()));
    }

    // ---- what is true ---------------------------------------------------------------------------------------------------------------

    fn node(&self, name: &str) -> Value {
        let state = json(&std::fs::read_to_string(&self.state).unwrap());
        state["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap().clone()
    }

    /// What the nodes said of the visitor's session, in the order in which it was heard.
    fn said(&self) -> Vec<(String, Value)> {
        let words = ask(&self.addr, "GET", "/said", "", "").body;
        let line = |line: &str| line.split_once(' ').map(|(node, text)| (node.to_owned(), json(text)));
        words.lines().filter(|text| text.contains("\"session\"")).filter_map(line).collect()
    }

    /// How much was said until now.
    pub(crate) fn words(&self) -> usize {
        self.said().len()
    }

    /// Who owns the session last, as that node said, and from what it goes on.
    #[track_caller]
    pub(crate) fn moved_since(&self, words: &usize) -> Moved {
        eventually("somebody owns the session", || {
            let said = self.said();
            let (node, line) = said.iter().skip(*words).rfind(|(_, line)| line["what"] == "moved")?;
            let from = line["from"].as_str().or_else(|| line["from"]["node"].as_str()).unwrap();
            Some(Moved { to: node.clone(), from: from.to_owned() })
        })
    }

    pub(crate) fn has_lost_since(&self, words: &usize) -> bool {
        self.said().iter().skip(*words).any(|(_, line)| line["what"] == "lost")
    }

    /// Waits until a node says that something is lost: its answer may be here first.
    #[track_caller]
    pub(crate) fn lost_since(&self, words: &usize) {
        eventually("a node says that something is lost", || self.has_lost_since(words).then_some(()));
    }

    /// The owner and its copies, as the page has it, and as the owner itself says when it is asked with the visitor's cookies.
    #[track_caller]
    fn place(&self) -> Option<(String, Vec<String>)> {
        let owner = self.owner_now()?;
        let http = self.node(&owner)["http"].as_str()?.strip_prefix("http://")?.to_owned();
        if !runs(&self.node(&owner)["pid"]) {
            return None;
        }
        let answer = ask(&http, "GET", "/shop/api/cart", &self.browser.cookies(), "");
        assert_eq!(answer.header("x-demo-owner"), Some(&*owner), "{}", answer.head);
        let copies = answer.header("x-demo-copies").unwrap().split(',').filter(|name| !name.is_empty());
        Some((owner, copies.map(str::to_owned).collect()))
    }

    fn owner_now(&self) -> Option<String> {
        self.browser.script("return story.owner").as_str().map(str::to_owned)
    }

    #[track_caller]
    pub(crate) fn owner(&self) -> String {
        eventually("there is an owner", || self.place()).0
    }

    fn copies(&self) -> Vec<String> {
        self.place().map(|(_, copies)| copies).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn copy(&self) -> String {
        eventually("there is a copy", || self.copies().first().cloned())
    }

    /// Waits until the store has what the visitor has.
    #[track_caller]
    pub(crate) fn stored(&self) {
        eventually("nothing waits for the store", || {
            let script = "return [...nodes.values()].every((node) => node.stats.dirty_age_ms === 0)";
            (self.browser.script(script) == true).then_some(())
        });
    }

    // ---- what is said ---------------------------------------------------------------------------------------------------------------

    /// The sentence after the first answer since something happened to `before`: its source is what the owner said, its cart is what the
    /// owner has.
    #[track_caller]
    pub(crate) fn answered(&self, before: &str, moved: &Moved, end: &str) -> Said {
        let sentence = self.browser.says(end);
        assert!(sentence.contains(&format!("Node {before} ")), "{sentence}");
        self.judged(sentence, before, moved)
    }

    /// The same when all nodes were ended.
    #[track_caller]
    pub(crate) fn answered_after_all_left(&self, before: &str, moved: &Moved, end: &str) -> Said {
        let sentence = self.browser.says(end);
        assert!(sentence.starts_with("All nodes were restarted in order"), "{sentence}");
        self.judged(sentence, before, moved)
    }

    #[track_caller]
    fn judged(&self, mut sentence: String, before: &str, moved: &Moved) -> Said {
        let wanted = moved.source(before);
        if sentence.contains(&format!("answered by node {}", moved.to)) {
            // The words of the new owner may take longer than its answer.
            sentence = self.browser.says(&wanted);
        }
        let took = sentence.split_once(" after ").unwrap().1.split_once('\u{a0}').unwrap().0;
        let took = Duration::from_secs_f64(took.parse::<f64>().unwrap() / 1000.0);
        let owner = self.owner();
        let http = self.node(&owner)["http"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        let view = json(&ask(&http, "GET", "/shop/api/cart", &self.browser.cookies(), "").body);
        let things: u64 = view["cart"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        let wanted = format!("version {}, {} thing", view["version"], things);
        assert!(sentence.contains(&wanted), "{wanted}: {sentence}");
        Said { sentence, took }
    }

    fn sentences(&self) -> Vec<(u64, String)> {
        let seen = self.browser.script("return window.seen");
        let one = |pair: &Value| (pair[0].as_u64().unwrap(), pair[1].as_str().unwrap().to_owned());
        seen.as_array().unwrap().iter().map(one).collect()
    }

    pub(crate) fn has_said(&self, text: &str) -> bool {
        self.sentences().iter().any(|(_, said)| said.contains(text))
    }

    pub(crate) fn forget_sentences(&self) {
        self.sentences_were_true();
        self.browser.script("window.seen.length = 0");
    }

    /// Reads everything that the page has said, and holds it against the processes.
    #[track_caller]
    pub(crate) fn sentences_were_true(&self) {
        for (at, text) in self.sentences() {
            assert!(!text.contains("This should never happen"), "{text}");
            assert!(!text.contains("undefined") && !text.contains("null") && !text.contains("NaN"), "{text}");
            for name in claimed(&text) {
                assert!(self.lived(&name, at), "node {name} did not run: {text}\n{:?}", self.lives.lock().unwrap());
            }
            if let Some((_, rest)) = text.split_once("Node ").filter(|(_, rest)| rest[1..].starts_with(" was killed")) {
                assert!(self.died(&rest[..1], at), "node {} was not killed: {text}", &rest[..1]);
            }
        }
        // What is said in the end holds now, and not only a moment ago.
        let last = eventually("the page and the processes agree", || {
            let text = self.browser.sentence();
            claimed(&text).iter().all(|name| runs(&self.node(name)["pid"])).then_some(text)
        });
        assert!(!last.is_empty());
    }

    /// Whether the node's process was seen to live a short while before that time.
    fn lived(&self, name: &str, at: u64) -> bool {
        let lives = self.lives.lock().unwrap();
        let of: Vec<_> = lives.iter().filter(|(_, node, _)| node == name).collect();
        let at_start = of.iter().rfind(|(t, _, _)| *t <= at.saturating_sub(BEHIND_MS)).is_some_and(|(_, _, alive)| *alive);
        at_start || of.iter().any(|(t, _, alive)| *alive && *t > at.saturating_sub(BEHIND_MS) && *t <= at + BEHIND_MS)
    }

    fn died(&self, name: &str, at: u64) -> bool {
        let lives = self.lives.lock().unwrap();
        let mut of = lives.iter().filter(|(t, node, _)| node == name && *t <= at + BEHIND_MS);
        let lived = of.any(|(_, _, alive)| *alive);
        lived && of.any(|(_, _, alive)| !alive)
    }
}

/// The nodes of which a text says that they do something, or have something.
pub(crate) fn claimed(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split([' ', ',', '.', ':', '\u{a0}']).filter(|word| !word.is_empty()).collect();
    let name = |word: &&str| word.len() == 1 && word.chars().all(char::is_uppercase);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate().filter(|(_, word)| name(word)) {
        let after = words[at + 1..].join(" ");
        let before = words[..at].join(" ");
        let present = ["keeps", "is making sure", "has a copy again", "has your session", "took over", "is leaving", "is the only one"];
        if present.iter().any(|claim| after.starts_with(claim)) || before.ends_with("You are on node") || before.ends_with("memory of node")
        {
            found.push((*word).to_owned());
        }
    }
    found
}

impl Drop for Page {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = std::fs::remove_file(&self.state);
    }
}
