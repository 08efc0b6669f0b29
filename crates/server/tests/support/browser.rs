//! Chromium without a screen, driven by plain HTTP.

use super::{Process, ask};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

/// One window.
pub(crate) struct Browser {
    _driver: Process,
    addr: String,
    session: String,
    profile: String,
}

impl Browser {
    pub(crate) fn open(name: &str) -> Browser {
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
        super::json(&answer.body)["value"].take()
    }

    pub(crate) fn go(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    #[track_caller]
    pub(crate) fn script(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Clicks as a finger does: what is hidden or covered cannot be clicked.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        let found = self.call("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        self.call("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// What the browser would send: a `Cookie` line.
    pub(crate) fn cookies(&self) -> String {
        let cookies = self.call("GET", "/cookie", &json!({}));
        let pair = |cookie: &Value| format!("{}={}", cookie["name"].as_str().unwrap(), cookie["value"].as_str().unwrap());
        let pairs: Vec<String> = cookies.as_array().unwrap().iter().map(pair).collect();
        format!("Cookie: {}\r\n", pairs.join("; "))
    }

    pub(crate) fn sentence(&self) -> String {
        self.script("return document.getElementById('sentence').textContent").as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn says(&self, wanted: &str) -> String {
        let mut last = String::new();
        for _ in 0..2400 {
            last = self.sentence();
            if last.contains(wanted) {
                return last;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!("it never said {wanted:?}, but {last:?}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ask(&self.addr, "DELETE", &format!("/session{}", self.session), "", "");
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
