//! The first letters on a connection: who is there, that both know the cluster's secret, and that nothing keeps them apart.
//!
//! A letter is its length (2 bytes, big endian, at most 16 KiB) and its content in postcard. The dialler says [`Hello`], the listener
//! answers with its own and a proof, the dialler with its proof, the listener that it takes it; then frames follow. A proof is a hash of
//! both hellos, nonces included, under a key that derives from the secret, and differs between the two ends: it cannot be replayed or sent
//! back. Either end may answer with the reason why it refuses instead. Nothing that comes after is looked at before the proof.
//!
//! What must be equal is compared by value, field by field ([`Hello::objection`]); what need not be is not sent for comparison at all.
//! Numbers in letters are codes that mean the same in every release of a protocol's version.

use crate::status::NodeStatus;
use crate::transport::{Reader, Writer};
use core::fmt;
use core::time::Duration;
use outlive_core::member::Node;
use outlive_core::stamp::Life;
use outlive_core::wire::PROTOCOL;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of a letter.
const LETTER_MAX: usize = 16 << 10;
/// How long all letters may take together.
pub(crate) const BOUND: Duration = Duration::from_secs(5);

/// Which store a node has.
pub(crate) type StoreId = [u8; 16];

/// The consistency `available`.
const AVAILABLE: u8 = 1;

/// How far a node has come in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// It has met nobody yet.
    New,
    /// It is in, or is the first.
    Member,
    /// A member refuses it.
    Refused,
    /// It is no node, and asks how this one is.
    Asks,
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    protocol: u16,
    pub(crate) cluster: String,
    consistency: u8,
    store: Option<StoreId>,
    nonce: [u8; 32],
    pub(crate) standing: Standing,
    pub(crate) name: String,
    pub(crate) addr: String,
    pub(crate) boot: u64,
    pub(crate) life: Life,
    zone: u64,
    pub(crate) observer: bool,
    http: String,
    backups: u8,
    stores: bool,
}

impl Hello {
    pub(crate) fn new(cluster: &str, store: Option<StoreId>, standing: Standing, node: &Node, nonce: [u8; 32]) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster: cluster.to_owned(),
            consistency: AVAILABLE,
            store,
            nonce,
            standing,
            name: node.name.to_string(),
            addr: node.addr.to_string(),
            boot: node.boot,
            life: node.life,
            zone: node.zone,
            observer: node.observer,
            http: node.http.to_string(),
            backups: node.backups,
            stores: node.stores,
        }
    }

    pub(crate) fn node(&self) -> Node {
        Node {
            name: self.name.as_str().into(),
            addr: self.addr.as_str().into(),
            boot: self.boot,
            life: self.life,
            zone: self.zone,
            observer: self.observer,
            http: self.http.as_str().into(),
            backups: self.backups,
            stores: self.stores,
        }
    }

    /// Why the node of this letter does not take the other one.
    fn objection(&self, other: &Hello) -> Option<Refusal> {
        let differ = |setting, there: Value, here: Value| (there != here).then_some(Refusal::Differs { setting, there, here });
        if self.life == other.life {
            return Some(Refusal::Myself);
        }
        // Who is set to no name only asks for it.
        if other.observer && other.cluster.is_empty() {
            return None;
        }
        let cluster = differ(Setting::Cluster, Value::Text(self.cluster.clone()), Value::Text(other.cluster.clone()));
        // An observer holds nothing: what it is set to matters to nobody.
        if cluster.is_some() || self.observer || other.observer {
            return cluster;
        }
        let store = differ(Setting::Store, Value::Store(self.store), Value::Store(other.store));
        store.or_else(|| differ(Setting::Consistency, Value::Code(self.consistency), Value::Code(other.consistency)))
    }
}

/// What must be equal on all nodes of a cluster, besides the secret and the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Setting {
    /// The cluster's name.
    Cluster,
    /// Which store it is, or that there is none.
    Store,
    Consistency,
}

/// A setting's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Value {
    Text(String),
    Code(u8),
    Store(Option<StoreId>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "`{text}`"),
            Value::Code(AVAILABLE) => f.write_str("available"),
            Value::Code(code) => write!(f, "no. {code}"),
            Value::Store(None) => f.write_str("none"),
            // Enough of it to tell two stores apart.
            Value::Store(Some(id)) => id.iter().take(4).try_for_each(|b| write!(f, "{b:02x}")),
        }
    }
}

/// Why a node does not take another one. As text it is what the one that is refused reads: `there` is the node that refuses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// It is this very node.
    Myself,
    /// The protocol that it speaks.
    Protocol(u16),
    /// A setting that must be equal.
    Differs { setting: Setting, there: Value, here: Value },
    /// Another secret.
    Secret,
    /// Too many who have not shown themselves yet, or it looks for its cluster itself.
    Busy,
    /// It has the same name, and runs.
    Namesake,
    /// It knows a node of that name, which runs, at this address.
    NameTaken(String),
}

impl Refusal {
    /// Whether who was refused with it knows that there is a cluster, and that it is not in.
    pub(crate) fn keeps_out(&self) -> bool {
        !matches!(self, Refusal::Busy | Refusal::Myself)
    }

    /// The same, as the node reads it that refuses.
    pub(crate) fn turned(self) -> Refusal {
        match self {
            Refusal::Differs { setting, there, here } => Refusal::Differs { setting, there: here, here: there },
            other => other,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Myself => f.write_str("it is this node itself"),
            Refusal::Protocol(there) => write!(f, "its release speaks protocol {there}, and this one {PROTOCOL}"),
            Refusal::Differs { setting: Setting::Cluster, there, here } => write!(f, "its cluster is {there}, and this node's {here}"),
            Refusal::Differs { setting: Setting::Store, there, here } => {
                write!(f, "its store is {there}, and this node's {here}: nodes of a cluster share one, or have none")
            }
            Refusal::Differs { setting: Setting::Consistency, there, here } => {
                write!(f, "its consistency is {there}, and this node's {here}")
            }
            Refusal::Secret => f.write_str("its secret is another one than this node's"),
            Refusal::Busy => f.write_str("it looks for its cluster itself, or is busy"),
            Refusal::Namesake => f.write_str("it has this node's name, and runs"),
            Refusal::NameTaken(addr) => write!(f, "the node at {addr} has this node's name, and runs"),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Letter {
    Hello(Hello),
    Welcome(Hello, [u8; 32]),
    Proof([u8; 32]),
    Refused(Refusal),
    Taken,
    Status(Box<NodeStatus>),
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("what listens there is no node, or one of another release")]
    Malformed,
    /// The other end refuses this one.
    #[error("{0}")]
    Refused(Refusal),
    /// This end refuses the other one.
    #[error("{0}")]
    Refuses(Refusal),
    /// It was told, and goes away.
    #[error("it only asked")]
    Asked,
    #[error("no answer within {} s", BOUND.as_secs())]
    Slow,
}

/// What both ends prove with.
fn proof(key: &[u8; 32], role: u8, dialler: &Hello, listener: &Hello) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&[role]);
    for hello in [dialler, listener] {
        let bytes = encode(hello);
        hasher.update(&(bytes.len() as u64).to_be_bytes()).update(&bytes);
    }
    *hasher.finalize().as_bytes()
}

const DIALLER: u8 = 1;
const LISTENER: u8 = 2;

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "a vector that grows takes every letter")]
    postcard::to_allocvec(value).expect("a letter always encodes")
}

/// Equal, in constant time.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0
}

async fn send(writer: &mut Writer, letter: &Letter) -> Result<(), HandshakeError> {
    let body = encode(letter);
    let mut bytes = (body.len() as u16).to_be_bytes().to_vec();
    bytes.extend(body);
    Ok(writer.write_all(&bytes).await?)
}

async fn receive(reader: &mut Reader) -> Result<Letter, HandshakeError> {
    let length = usize::from(reader.read_u16().await?);
    if length == 0 || length > LETTER_MAX {
        return Err(HandshakeError::Malformed);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    decode(&body)
}

fn decode(body: &[u8]) -> Result<Letter, HandshakeError> {
    // The version comes first and is read alone: the rest may look different in another one.
    if let [0 | 1, rest @ ..] = body
        && let Ok((protocol, _)) = postcard::take_from_bytes::<u16>(rest)
        && protocol != PROTOCOL
    {
        return Err(HandshakeError::Refuses(Refusal::Protocol(protocol)));
    }
    match postcard::take_from_bytes(body) {
        Ok((letter, [])) => Ok(letter),
        _ => Err(HandshakeError::Malformed),
    }
}

/// Tells the other end why; that it may not listen any more does not matter.
async fn refuse(writer: &mut Writer, refusal: Refusal) -> HandshakeError {
    let _ = send(writer, &Letter::Refused(refusal.clone())).await;
    HandshakeError::Refuses(refusal.turned())
}

/// Asks for the name of the cluster, and how the other end is if `me` says that it [asks](Standing::Asks), and goes away. `key` is what the
/// ends prove themselves with, which may depend on the name; `me` is an observer that is set to none.
pub(crate) async fn ask(
    (reader, writer): (&mut Reader, &mut Writer),
    me: &Hello,
    key: impl FnOnce(&str) -> [u8; 32],
) -> Result<(String, Option<NodeStatus>), HandshakeError> {
    let talk = async {
        send(writer, &Letter::Hello(me.clone())).await?;
        let (other, shown) = match receive(reader).await? {
            Letter::Welcome(other, shown) => (other, shown),
            Letter::Refused(refusal) => return Err(HandshakeError::Refused(refusal)),
            _ => return Err(HandshakeError::Malformed),
        };
        let key = key(&other.cluster);
        if !same(&shown, &proof(&key, LISTENER, me, &other)) {
            return Err(refuse(writer, Refusal::Secret).await);
        }
        if me.standing != Standing::Asks {
            return Ok((other.cluster, None));
        }
        send(writer, &Letter::Proof(proof(&key, DIALLER, me, &other))).await?;
        match receive(reader).await? {
            Letter::Status(status) => Ok((other.cluster, Some(*status))),
            Letter::Refused(refusal) => Err(HandshakeError::Refused(refusal)),
            _ => Err(HandshakeError::Malformed),
        }
    };
    tokio::time::timeout(BOUND, talk).await.unwrap_or(Err(HandshakeError::Slow))
}

/// The dialler's part. `judge` says, once the other end has proved itself, why this one does not take it.
pub(crate) async fn dial(
    (reader, writer): (&mut Reader, &mut Writer),
    me: &Hello,
    key: &[u8; 32],
    judge: impl FnOnce(&Hello) -> Option<Refusal>,
) -> Result<Hello, HandshakeError> {
    let talk = async {
        send(writer, &Letter::Hello(me.clone())).await?;
        let (other, shown) = match receive(reader).await {
            Ok(Letter::Welcome(other, shown)) => (other, shown),
            Ok(Letter::Refused(refusal)) => return Err(HandshakeError::Refused(refusal)),
            Ok(_) => return Err(HandshakeError::Malformed),
            Err(error) => return Err(error),
        };
        if let Some(refusal) = me.objection(&other) {
            return Err(refuse(writer, refusal).await);
        }
        if !same(&shown, &proof(key, LISTENER, me, &other)) {
            return Err(refuse(writer, Refusal::Secret).await);
        }
        if let Some(refusal) = judge(&other) {
            return Err(refuse(writer, refusal).await);
        }
        send(writer, &Letter::Proof(proof(key, DIALLER, me, &other))).await?;
        match receive(reader).await? {
            Letter::Taken => Ok(other),
            Letter::Refused(refusal) => Err(HandshakeError::Refused(refusal)),
            _ => Err(HandshakeError::Malformed),
        }
    };
    tokio::time::timeout(BOUND, talk).await.unwrap_or(Err(HandshakeError::Slow))
}

/// The listener's part. `judge` says, once the other end has proved itself, why this one does not take it; `status`, how it is.
pub(crate) async fn accept(
    (reader, writer): (&mut Reader, &mut Writer),
    me: &Hello,
    key: &[u8; 32],
    judge: impl FnOnce(&Hello) -> Option<Refusal>,
    status: impl FnOnce() -> NodeStatus,
) -> (Option<Hello>, Result<(), HandshakeError>) {
    let mut heard = None;
    let talk = async {
        let other = match receive(reader).await {
            Ok(Letter::Hello(other)) => &*heard.insert(other),
            Ok(_) => return Err(HandshakeError::Malformed),
            Err(HandshakeError::Refuses(theirs)) => {
                let _ = refuse(writer, Refusal::Protocol(PROTOCOL)).await;
                return Err(HandshakeError::Refuses(theirs));
            }
            Err(error) => return Err(error),
        };
        if let Some(refusal) = me.objection(other) {
            return Err(refuse(writer, refusal).await);
        }
        send(writer, &Letter::Welcome(me.clone(), proof(key, LISTENER, other, me))).await?;
        match receive(reader).await? {
            Letter::Proof(shown) if same(&shown, &proof(key, DIALLER, other, me)) => {}
            Letter::Proof(_) => return Err(refuse(writer, Refusal::Secret).await),
            Letter::Refused(refusal) => return Err(HandshakeError::Refused(refusal)),
            _ => return Err(HandshakeError::Malformed),
        }
        if other.standing == Standing::Asks {
            let mut status = status();
            while encode(&status).len() + 8 > LETTER_MAX && status.members.pop().is_some() {}
            send(writer, &Letter::Status(Box::new(status))).await?;
            return Err(HandshakeError::Asked);
        }
        if let Some(refusal) = judge(other) {
            return Err(refuse(writer, refusal).await);
        }
        send(writer, &Letter::Taken).await
    };
    let talked = tokio::time::timeout(BOUND, talk).await.unwrap_or(Err(HandshakeError::Slow));
    (heard, talked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::MemberStatus;
    use crate::transport;
    use tokio::net::{TcpListener, TcpStream};

    fn hello(life: u64) -> Hello {
        let node = Node {
            name: format!("n{life}").into(),
            addr: "127.0.0.1:1".into(),
            boot: life,
            life: Life::new(life),
            zone: 0,
            observer: false,
            http: "".into(),
            backups: 1,
            stores: false,
        };
        Hello::new("c", None, Standing::New, &node, [life as u8; 32])
    }

    async fn pair() -> ((Reader, Writer), (Reader, Writer)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (transport::accept(dialled).unwrap(), transport::accept(accepted).unwrap())
    }

    type Met = Result<Hello, HandshakeError>;

    async fn meet(a: Hello, a_key: [u8; 32], b: Hello, b_key: [u8; 32], no: Option<Refusal>) -> (Met, Met) {
        let (mut dialler, mut listener) = pair().await;
        tokio::join!(
            // The ends close when their part is over, as in life.
            async {
                let met = dial((&mut dialler.0, &mut dialler.1), &a, &a_key, |_| None).await;
                drop(dialler);
                met
            },
            async {
                let (other, met) = accept((&mut listener.0, &mut listener.1), &b, &b_key, |_| no, || unreachable!()).await;
                drop(listener);
                met.map(|()| other.unwrap())
            }
        )
    }

    /// What both ends say, by name of who refuses: the one that dials first.
    fn said((a, b): (Met, Met)) -> (String, String) {
        let text = |met: Met| match met {
            Err(HandshakeError::Refused(refusal)) => format!("refused: {refusal}"),
            Err(HandshakeError::Refuses(refusal)) => format!("refuses: {refusal}"),
            other => panic!("{other:?}"),
        };
        (text(a), text(b))
    }

    #[tokio::test]
    async fn two_who_share_a_secret_learn_who_the_other_is() {
        let (a, b) = meet(hello(1), [7; 32], hello(2), [7; 32], None).await;
        assert_eq!((a.unwrap(), b.unwrap()), (hello(2), hello(1)));
    }

    #[tokio::test]
    async fn another_secret_is_refused() {
        let (a, b) = said(meet(hello(1), [7; 32], hello(2), [8; 32], None).await);
        assert_eq!(a, "refuses: its secret is another one than this node's");
        assert_eq!(b, "refused: its secret is another one than this node's");
    }

    #[tokio::test]
    async fn a_refusal_names_the_setting_and_both_values_and_nothing_else() {
        let key = [7; 32];
        let other = Hello { cluster: "d".to_owned(), ..hello(2) };
        let (a, b) = said(meet(hello(1), key, other, key, None).await);
        assert_eq!(
            (a.as_str(), b.as_str()),
            ("refused: its cluster is `d`, and this node's `c`", "refuses: its cluster is `c`, and this node's `d`")
        );
        let store = |id| Hello { store: Some([id; 16]), ..hello(2) };
        let (a, b) = said(meet(hello(1), key, store(0xab), key, None).await);
        assert_eq!(a, "refused: its store is abababab, and this node's none: nodes of a cluster share one, or have none");
        assert_eq!(b, "refuses: its store is none, and this node's abababab: nodes of a cluster share one, or have none");
        let (a, _) = said(meet(Hello { life: Life::new(1), ..store(1) }, key, store(2), key, None).await);
        assert_eq!(a, "refused: its store is 02020202, and this node's 01010101: nodes of a cluster share one, or have none");
        let strict = Hello { consistency: 2, ..hello(2) };
        let (a, _) = said(meet(hello(1), key, strict, key, None).await);
        assert_eq!(a, "refused: its consistency is no. 2, and this node's available");
        let newer = Hello { protocol: PROTOCOL + 1, ..hello(2) };
        let (a, b) = said(meet(newer, key, hello(1), key, None).await);
        assert_eq!(a, format!("refused: its release speaks protocol {PROTOCOL}, and this one {PROTOCOL}"));
        assert_eq!(b, format!("refuses: its release speaks protocol {}, and this one {PROTOCOL}", PROTOCOL + 1));
        let (a, b) = said(meet(hello(1), key, hello(1), key, None).await);
        assert!(a.contains("this node itself") && b.contains("this node itself"));
    }

    #[tokio::test]
    async fn nodes_may_differ_in_all_else_and_an_observer_in_more() {
        let other = Hello { backups: 5, stores: true, standing: Standing::Member, ..hello(2) };
        let (a, b) = meet(hello(1), [7; 32], other, [7; 32], None).await;
        assert!(a.is_ok() && b.is_ok());
        let other = Hello { store: Some([1; 16]), consistency: 2, ..hello(2) };
        let (a, b) = meet(Hello { observer: true, ..hello(1) }, [7; 32], other, [7; 32], None).await;
        assert!(a.is_ok() && b.is_ok());
    }

    #[tokio::test]
    async fn whoever_is_not_taken_after_its_proof_hears_why() {
        let taken = Some(Refusal::NameTaken("app1:7400".to_owned()));
        let (a, b) = said(meet(hello(1), [7; 32], hello(2), [7; 32], taken).await);
        assert_eq!(a, "refused: the node at app1:7400 has this node's name, and runs");
        assert!(b.starts_with("refuses: "));
        // Not before: the address is nobody's business who does not know the secret.
        let taken = Some(Refusal::NameTaken("app1:7400".to_owned()));
        let (a, b) = said(meet(hello(1), [8; 32], hello(2), [7; 32], taken).await);
        assert!(!a.contains("app1") && !b.contains("app1"));
    }

    #[tokio::test]
    async fn a_listeners_own_proof_sent_back_proves_nothing() {
        let (mut dialler, mut listener) = pair().await;
        let thief = async {
            send(&mut dialler.1, &Letter::Hello(hello(1))).await.unwrap();
            let Letter::Welcome(_, shown) = receive(&mut dialler.0).await.unwrap() else { panic!("no welcome") };
            send(&mut dialler.1, &Letter::Proof(shown)).await.unwrap();
        };
        let me = hello(2);
        let ((_, met), ()) = tokio::join!(accept((&mut listener.0, &mut listener.1), &me, &[7; 32], |_| None, || unreachable!()), thief);
        assert!(matches!(met, Err(HandshakeError::Refuses(Refusal::Secret))), "{met:?}");
    }

    #[tokio::test]
    async fn a_proof_is_good_for_one_connection() {
        let (one, other) = (hello(1), Hello { nonce: [9; 32], ..hello(1) });
        assert_ne!(proof(&[7; 32], DIALLER, &one, &hello(2)), proof(&[7; 32], DIALLER, &other, &hello(2)));
        assert_ne!(proof(&[7; 32], DIALLER, &one, &hello(2)), proof(&[7; 32], DIALLER, &one, &Hello { nonce: [9; 32], ..hello(2) }));
    }

    /// Other releases must be able to read it as long as [`PROTOCOL`] is the same; and whatever it is, the protocol comes first.
    #[test]
    fn the_letters_keep_their_bytes() {
        let golden = include_str!("handshake/letters.txt");
        let hello = Hello { store: Some([0xee; 16]), standing: Standing::Refused, observer: true, http: "app1:80".to_owned(), ..hello(3) };
        let refusals = [
            Refusal::Myself,
            Refusal::Protocol(9),
            Refusal::Differs { setting: Setting::Cluster, there: Value::Text("c".to_owned()), here: Value::Text("d".to_owned()) },
            Refusal::Differs { setting: Setting::Store, there: Value::Store(None), here: Value::Store(Some([1; 16])) },
            Refusal::Differs { setting: Setting::Consistency, there: Value::Code(1), here: Value::Code(2) },
            Refusal::Secret,
            Refusal::Busy,
            Refusal::Namesake,
            Refusal::NameTaken("app1:7400".to_owned()),
        ];
        let letters = [Letter::Hello(hello.clone()), Letter::Welcome(hello.clone(), [5; 32]), Letter::Proof([6; 32]), Letter::Taken];
        let refusals = refusals.map(Letter::Refused);
        let status = NodeStatus {
            name: "n".to_owned(),
            addr: "app1:7400".to_owned(),
            http: "app1:80".to_owned(),
            cluster: "c".to_owned(),
            observer: false,
            release: "1.2.3".to_owned(),
            protocol: 2,
            readiness: "ready".to_owned(),
            fit: true,
            healthy: true,
            durability: "backup(1)".to_owned(),
            backups: 1,
            min_backups: 0,
            idle_timeout_ms: 1000,
            lifetime_ms: 2000,
            store: Some([7; 16]),
            owned: 1,
            copies: 2,
            under_replicated: 3,
            dirty: 4,
            dirty_age_ms: 5,
            settled: true,
            members: vec![MemberStatus { name: "m".to_owned(), addr: "b:1".to_owned(), observer: false, suspect: true, leaving: false }],
        };
        let asks = [Letter::Hello(Hello { standing: Standing::Asks, ..hello.clone() }), Letter::Status(Box::new(status))];
        let hex = |letter: &Letter| encode(letter).iter().map(|b| format!("{b:02x}")).collect::<String>();
        let text: String = letters.iter().chain(&refusals).chain(&asks).map(|letter| hex(letter) + "\n").collect();
        assert_eq!(text, golden, "a change of the letters raises PROTOCOL");
        for letter in letters.iter().chain(&refusals).chain(&asks) {
            assert_eq!(&decode(&encode(letter)).unwrap(), letter);
        }
    }

    #[test]
    fn a_letter_fits_with_the_longest_names() {
        let long = "x".repeat(255);
        let hello = Hello { cluster: long.clone(), name: long.clone(), addr: long.clone(), http: long, ..hello(1) };
        assert!(encode(&Letter::Welcome(hello, [255; 32])).len() <= LETTER_MAX);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        let whole = encode(&Letter::Welcome(hello(3), [1; 32]));
        assert!(decode(&whole).is_ok());
        for at in 0..whole.len() {
            assert!(decode(&whole[..at]).is_err());
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let _ = decode(&bytes);
            }
        }
        for first in 0..=255 {
            let _ = decode(&[first, 255, 255, 255, 255, 255, 255]);
        }
    }
}
