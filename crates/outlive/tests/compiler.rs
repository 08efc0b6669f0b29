//! What the compiler says of a mistake. Programs of a few lines are given to it, and its words are read: an error that only comes from
//! somewhere is of no use to whoever made the mistake.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// The library as it was built for this test, and the folder of what it is made of.
static BUILT: LazyLock<(PathBuf, PathBuf)> = LazyLock::new(|| {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let mut libraries: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with("liboutlive-") && name.ends_with(".rlib")
        })
        .map(|entry| (entry.metadata().unwrap().modified().unwrap(), entry.path()))
        .collect();
    libraries.sort();
    // Earlier builds with other features may lie there, too, and some of them can no longer be used.
    let newest = libraries.into_iter().rev().map(|(_, path)| (path, folder.clone()));
    newest.into_iter().find(|built| compile(built, GOOD).0).expect("a library that a good program can use")
});

const GOOD: &str = r#"
const CART: Key<Vec<String>> = Key::new("cart");
pub async fn good(session: Session) -> usize {
    let mut seen = 0;
    session.update(CART, |cart| { cart.push("bell".to_owned()); seen = cart.len(); });
    let kept = session.get(CART).unwrap_or_default();
    std::future::ready(()).await;
    seen + kept.len()
}
"#;

/// Whether a program compiles, and what the compiler says.
fn compile((library, folder): &(PathBuf, PathBuf), program: &str) -> (bool, String) {
    let program = format!("#![allow(unused_imports)]\nuse outlive::{{Key, Outlive, Session}};\n{program}");
    let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-name", "mistake", "--crate-type", "lib", "--emit", "metadata=-", "-"])
        .arg("-L")
        .arg(format!("dependency={}", folder.display()))
        .arg("--extern")
        .arg(format!("outlive={}", library.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut compiler.stdin.take().unwrap(), program.as_bytes()).unwrap();
    let output = compiler.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[track_caller]
fn refused(program: &str, words: &[&str]) {
    let (compiles, said) = compile(&BUILT, program);
    assert!(!compiles, "this compiles:\n{program}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

#[track_caller]
fn warned(program: &str, words: &[&str]) {
    let (compiles, said) = compile(&BUILT, program);
    assert!(compiles, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

#[test]
fn a_good_program_compiles_without_a_word() {
    assert_eq!(compile(&BUILT, GOOD), (true, String::new()));
}

#[test]
fn a_bad_name_of_a_key_does_not_compile_and_the_sentence_says_what_is_bad() {
    let key = |name: &str| format!("pub const KEY: Key<u64> = Key::new({name:?});");
    refused(&key(""), &["the name of a session key is empty"]);
    refused(&key("my cart"), &["has a space, a control character or one that is not ASCII"]);
    refused(&key("körbchen"), &["one that is not ASCII"]);
    refused(&key("draft:1"), &["has a `:`; for one of a family write `KEY.of(item)`"]);
    refused(&key("outlive.user"), &["names of session keys that begin with `outlive` are reserved"]);
    refused(&key(&"x".repeat(64)), &["has more than 63 bytes"]);
}

#[test]
fn a_type_that_cannot_be_kept_does_not_compile_and_the_sentence_says_what_to_derive() {
    let words = ["`Cart` cannot be kept in a session", "try `#[derive(Clone, serde::Serialize, serde::Deserialize)]` on `Cart`"];
    refused("pub struct Cart; pub const CART: Key<Cart> = Key::new(\"cart\");", &words);
    let connection = "pub const SOCKET: Key<std::net::TcpStream> = Key::new(\"socket\");";
    refused(connection, &["`TcpStream` cannot be kept in a session", "put an id there"]);
}

#[test]
fn update_of_a_type_without_a_default_does_not_compile() {
    refused(
        "const AT: Key<std::net::IpAddr> = Key::new(\"at\");
         pub fn f(session: Session) { session.update(AT, |_| ()) }",
        &["E0277", "IpAddr: Default"],
    );
}

#[test]
fn waiting_inside_of_a_closure_does_not_compile_and_neither_does_keeping_a_borrow() {
    let list = "const LIST: Key<Vec<String>> = Key::new(\"list\");";
    refused(
        &format!("{list} pub async fn f(session: Session) {{ session.update(LIST, |_| std::future::ready(()).await) }}"),
        &["E0728", "`await` is only allowed inside `async` functions and blocks"],
    );
    refused(
        &format!("{list} pub fn f(session: &Session) -> &String {{ session.update(LIST, |list| &list[0]) }}"),
        &["lifetime may not live long enough"],
    );
}

#[test]
fn an_answer_that_should_be_looked_at_is_a_warning() {
    warned("pub fn f(session: Session, key: Key<u64>) { session.get(key); }", &["unused return value of `Session::get` that must be used"]);
    warned(
        "pub async fn f(session: Session) -> Result<(), outlive::CommitError> { session.invalidate().await?; Ok(()) }",
        &["Ended` that must be used", "`Pending` means that a node which is cut off may still serve the session"],
    );
    warned("pub fn f() { Outlive::builder(); }", &["a node starts with `.start().await`"]);
}
