//! The page, in a real browser: Chromium without a screen, driven by plain HTTP.
//!
//! Needs `chromium` and `chromedriver` (Debian: `chromium chromium-driver`). `OUTLIVE_WITHOUT_BROWSER=1` leaves it out.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use serde_json::{Value, json};
use std::process::Command;
use support::{Process, ask, eventually};

/// One window.
struct Browser {
    _driver: Process,
    addr: String,
    session: String,
    profile: String,
}

impl Browser {
    fn open(name: &str) -> Browser {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0");
        let mut driver = Process::start(command);
        let port = driver.line_with("successfully on port ");
        let addr = format!("127.0.0.1:{}", port.trim_end_matches('.'));
        let profile = std::env::temp_dir().join(format!("outlive-browser-{}-{name}", std::process::id())).display().to_string();
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={profile}"),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } } });
        let mut browser = Browser { _driver: driver, addr, session: String::new(), profile };
        let session = browser.call("POST", "", &wanted);
        browser.session = format!("/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer =
            ask(&self.addr, method, &format!("/session{}{path}", self.session), "Content-Type: application/json\r\n", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        support::json(&answer.body)["value"].take()
    }

    fn go(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    #[track_caller]
    fn script(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Clicks as a finger does: what is hidden or covered cannot be clicked.
    #[track_caller]
    fn click(&self, selector: &str) {
        let found = self.call("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        self.call("POST", &format!("/element/{id}/click"), &json!({}));
    }

    fn sentence(&self) -> String {
        self.script("return document.getElementById('sentence').textContent").as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn says(&self, wanted: &str) -> String {
        eventually(wanted, || Some(self.sentence()).filter(|said| said.contains(wanted)))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ask(&self.addr, "DELETE", &format!("/session{}", self.session), "", "");
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

fn left_out() -> bool {
    std::env::var_os("OUTLIVE_WITHOUT_BROWSER").is_some()
}

#[test]
fn a_cart_survives_the_kill_of_its_node_and_the_page_says_so() {
    if left_out() {
        return;
    }
    let mut demo = Process::outlive(&["demo", "--listen", "127.0.0.1:0", "--visitors", "10"]);
    let addr = demo.line_with("ready http://");
    let browser = Browser::open("kill");
    browser.go(&format!("http://{addr}/"));
    browser.says("Put something in your cart");
    let add = |thing: &str| browser.click(&format!("button[aria-label='Add a {thing}']"));
    let cart = || browser.script("return [...document.querySelectorAll('#goods output')].map((o) => o.textContent).join(' ').trim()");
    add("bell");
    eventually("one bell", || (cart() == "\u{d7}1").then_some(()));
    add("bell");
    add("saddle");
    eventually("two bells and a saddle", || (cart() == "\u{d7}2 \u{d7}1").then_some(()));
    let before = browser.says("keeps a copy of your session");
    let owner = before.strip_prefix("You are on node ").unwrap().chars().next().unwrap();
    browser.click("#kill-mine");
    browser.says(&format!("Node {owner} was killed"));
    let shown = format!("return document.querySelector('[data-name={owner}]').className");
    assert!(browser.script(&shown).as_str().unwrap().contains("gone"));
    add("lamp");
    let after = browser.says("Nothing was lost");
    assert!(after.contains("Your next click was answered by node") && after.contains("4 things in your cart"), "{after}");
    assert_eq!(cart(), "\u{d7}2 \u{d7}1 \u{d7}1");
    // Nor was anybody else's: the other shoppers look after every answer.
    let totals = browser.script("return [...document.querySelectorAll('#totals dd')].slice(3).map((d) => d.textContent).join()");
    assert_eq!(totals, "0,0,0");
    // A page that is loaded anew finds the same cart.
    browser.go(&format!("http://{addr}/"));
    eventually("the cart after a reload", || (cart() == "\u{d7}2 \u{d7}1 \u{d7}1").then_some(()));
}

#[test]
fn the_shop_works_without_script() {
    if left_out() {
        return;
    }
    let mut demo = Process::outlive(&["demo", "--listen", "127.0.0.1:0", "--visitors", "0"]);
    let addr = demo.line_with("ready http://");
    let browser = Browser::open("plain");
    browser.go(&format!("http://{addr}/shop"));
    browser.click("form[action='/shop/add'] button");
    let row = || browser.script("return document.querySelector('td').textContent");
    eventually("one in the cart", || (row() == "1").then_some(()));
    browser.script("document.querySelector('input[name=user]').value = 'Ada <b>'");
    browser.click("form[action='/shop/login'] button");
    eventually("signed in", || browser.script("return document.body.innerText").as_str()?.contains("Signed in as Ada <b>").then_some(()));
    assert_eq!(row(), "1");
    browser.click("form[action='/shop/logout'] button");
    eventually("signed out, and the cart is gone", || (row() == "0").then_some(()));
}
