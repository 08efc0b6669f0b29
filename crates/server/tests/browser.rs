//! The page, in a real browser: Chromium without a screen, driven by plain HTTP.
//!
//! Needs `chromium` and `chromedriver` (Debian: `chromium chromium-driver`). `OUTLIVE_WITHOUT_BROWSER=1` leaves it out.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use support::browser::Browser;
use support::page::{Page, claimed};
use support::{Process, eventually};

fn left_out() -> bool {
    std::env::var_os("OUTLIVE_WITHOUT_BROWSER").is_some()
}

#[test]
fn the_claims_of_a_sentence_are_found() {
    assert_eq!(claimed("You are on node A. Node B keeps a copy of your session."), ["A", "B"]);
    assert_eq!(claimed("Node A was killed just now. Node B is making sure that it has your latest version."), ["B"]);
}

#[test]
fn a_cart_survives_the_kill_of_its_node_and_the_page_says_so() {
    if left_out() {
        return;
    }
    let page = Page::open("kill", &["--visitors", "10"]);
    page.browser.says("Three servers run this shop. Put something in your cart");
    page.add("bell");
    page.add("bell");
    page.add("saddle");
    let before = page.browser.says("keeps a copy of your session");
    let owner = before.strip_prefix("You are on node ").unwrap().chars().next().unwrap();
    page.browser.click("#kill-mine");
    page.browser.says(&format!("Node {owner} was killed"));
    let shown = format!("return document.querySelector('[data-name={owner}]').className");
    eventually("the node is drawn as gone", || page.browser.script(&shown).as_str().unwrap().contains("gone").then_some(()));
    page.add("lamp");
    let after = page.browser.says("Nothing was lost");
    assert!(after.contains("Your next click was answered by node") && after.contains("4 things in your cart"), "{after}");
    assert_eq!(page.cart(), "\u{d7}2 \u{d7}1 \u{d7}1");
    // Nor was anybody else's: the other shoppers look after every answer.
    let totals = page.browser.script("return [...document.querySelectorAll('#totals dd')].slice(3).map((d) => d.textContent).join()");
    assert_eq!(totals, "0,0,0");
    page.sentences_were_true();
    // A page that is loaded anew finds the same cart.
    page.reload();
    eventually("the cart after a reload", || (page.cart() == "\u{d7}2 \u{d7}1 \u{d7}1").then_some(()));
}

/// One visitor, who sees everything that can happen to a session that has a copy and a store.
#[test]
fn every_sentence_about_copies_and_the_store_is_true() {
    if left_out() {
        return;
    }
    let page = Page::open("store", &["--visitors", "0"]);
    page.browser.says("Three servers run this shop.");
    page.add("bell");
    page.browser.says("keeps a copy of your session");

    // The copy goes, not the session.
    let (owner, copy) = (page.owner(), page.copy());
    page.act(&format!("nodes/{copy}/kill"));
    page.browser.says(&format!("Node {copy}, which kept a copy of your session, was killed"));
    page.browser.says(&format!("in the memory of node {owner}, where it was, and node"));
    page.start(&copy);

    // The owner goes, and the visitor takes their time: what they wait is not what it took.
    let (owner, words) = (page.owner(), page.words());
    page.act(&format!("nodes/{owner}/kill"));
    page.browser.says("has a copy again");
    let took_over = page.browser.says("took over");
    let moved = page.moved_since(&words);
    assert!(took_over.contains(&format!("Node {} took over", moved.to)) && took_over.contains(&moved.source(&owner)), "{took_over}");
    page.browser.says(" seconds ago");
    page.add("saddle");
    let said = page.answered(&owner, &moved, "Nothing was lost.");
    assert!(said.took < page.last_click(), "{said:?}");
    page.start(&owner);

    // Both go at once: who is dead makes sure of nothing, and what the third has it has from the store.
    let (owner, copy, words) = (page.owner(), page.copy(), page.words());
    page.stored();
    page.act(&format!("nodes/{copy}/kill"));
    page.act(&format!("nodes/{owner}/kill"));
    page.browser.says(&format!("Node {owner} was killed"));
    page.add("lamp");
    let moved = page.moved_since(&words);
    page.answered(&owner, &moved, "Nothing was lost.");
    page.start(&owner);
    page.start(&copy);

    // Nobody is left.
    let (owner, words) = (page.owner(), page.words());
    page.stored();
    for name in ["A", "B", "C"] {
        page.act(&format!("nodes/{name}/kill"));
    }
    page.browser.says("no other node runs.");
    page.start("A");
    page.start("B");
    page.add("pump");
    let moved = page.moved_since(&words);
    assert_eq!(moved.from, "store");
    page.answered(&owner, &moved, "Nothing was lost.");
    page.start("C");
    page.sentences_were_true();
}

/// The same visitor, while operators do what they do.
#[test]
fn every_sentence_about_drains_deployments_and_settings_is_true() {
    if left_out() {
        return;
    }
    let page = Page::open("deploy", &["--visitors", "0"]);
    page.browser.says("Three servers run this shop.");
    page.add("bell");
    page.browser.says("keeps a copy of your session");

    let (owner, words) = (page.owner(), page.words());
    page.act(&format!("nodes/{owner}/drain"));
    page.browser.says(&format!("Node {owner} left in order"));
    let moved = page.moved_since(&words);
    page.add("saddle");
    page.answered(&owner, &moved, "Nothing was lost.");
    page.start(&owner);

    page.browser.click("#deploy");
    page.until_idle();
    assert!(page.has_said("A new version is being deployed, node by node."));
    page.add("lamp");
    page.browser.says("Nothing was lost.");
    assert!(!page.has_said("being restarted in order"));

    // A switch of all nodes is no deployment.
    let owner = page.owner();
    page.forget_sentences();
    page.browser.click("#keep input[value=nothing]");
    page.until_idle();
    assert!(page.has_said("All nodes are being restarted in order, with the other setting.") && !page.has_said("deployed"));
    // Nor is the session drawn on a node that knows nothing of it.
    eventually("no node is drawn with it", || {
        page.browser.script("return document.querySelector('.chip.owner, .chip.copy')").is_null().then_some(())
    });
    // Whoever had it meanwhile has ended, and said all that it had to say.
    let words = page.words();
    page.add("basket");
    let moved = page.moved_since(&words);
    assert_eq!(moved.from, "store");
    page.answered_after_all_left(&owner, &moved, "Nothing was lost.");
    eventually("nobody keeps a copy", || page.browser.sentence().contains("Nothing was lost").then_some(()));

    // In the moment of an answer its node is killed: what the store had not heard of may be lost, and is told.
    let (owner, words) = (page.owner(), page.words());
    page.browser.click("#arm");
    page.add("pump");
    page.browser.says(&format!("Node {owner} was killed"));
    page.browser.click("button[aria-label='Add a lock']");
    let moved = page.moved_since(&words);
    let said = eventually("the page says what became of it", || {
        let said = page.browser.sentence();
        (said.contains("Something is lost that you had seen") || said.contains("Nothing was lost.")).then_some(said)
    });
    if said.contains("Something is lost") {
        page.lost_since(&words);
    } else {
        assert!(!page.has_lost_since(&words), "{said}");
    }
    page.browser.says(&moved.source(&owner));
    page.sentences_were_true();
}

/// Without copies and without a store a kill loses the session; whatever is clicked afterwards, that is what happened.
#[test]
fn an_honest_loss_is_told_and_stays_one() {
    if left_out() {
        return;
    }
    let page = Page::open("loss", &["--visitors", "0", "--nodes", "5", "--store", "none", "--durability", "owner"]);
    page.browser.says("Five servers run this shop.");
    page.add("bell");
    page.browser.says("No other node has a copy of your session.");
    let (owner, words) = (page.owner(), page.words());
    page.browser.click("#kill-mine");
    page.browser.says(&format!("Node {owner} was killed"));
    page.browser.says("No other node had a copy of your session; there is no store.");
    page.browser.click("button[aria-label='Add a lamp']");
    let said = page.browser.says("Something is lost that you had seen: Bell");
    page.lost_since(&words);
    // Unless the nodes had given it up before the click.
    assert_eq!(said.contains("in which you were asked to wait"), page.has_said("Your click is asked to wait"), "{said}");
    for thing in ["lamp", "pump"] {
        page.add(thing);
        let said = page.browser.sentence();
        assert!(said.contains("Something is lost that you had seen: Bell"), "{said}");
    }
    assert!(!page.has_said("Nothing was lost"));
    page.browser.click("#reset");
    page.browser.says("Five servers run this shop.");
    page.sentences_were_true();
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
