//! The first letters on a connection: who is there, and that both know the cluster's secret.
//!
//! A letter is its length (2 bytes, big endian, at most 16 KiB) and its content in postcard. The dialler says [`Hello`], the listener
//! answers with its own and a proof, the dialler with its proof; then frames follow. A proof is a hash of both hellos, nonces
//! included, under a key that derives from the secret, and differs between the two ends: it cannot be replayed or sent back. Either end may
//! answer with the reason why it refuses instead. Nothing that comes after is looked at before the proof.

use crate::transport::{Reader, Writer};
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

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    protocol: u16,
    cluster: String,
    /// The settings that must be equal, for people; compared as a whole.
    settings: String,
    nonce: [u8; 32],
    name: String,
    addr: String,
    boot: u64,
    pub(crate) life: Life,
    zone: u64,
    observer: bool,
    http: String,
}

impl Hello {
    pub(crate) fn new(cluster: &str, settings: String, node: &Node, nonce: [u8; 32]) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster: cluster.to_owned(),
            settings,
            nonce,
            name: node.name.to_string(),
            addr: node.addr.to_string(),
            boot: node.boot,
            life: node.life,
            zone: node.zone,
            observer: node.observer,
            http: node.http.to_string(),
        }
    }

    #[cfg(test)]
    pub(crate) fn settings(&self) -> &str {
        &self.settings
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
        }
    }

    /// Why this node and that one cannot be in one cluster.
    fn objection(&self, other: &Hello) -> Option<Refusal> {
        if self.life == other.life {
            return Some(Refusal::Myself);
        }
        if self.cluster != other.cluster {
            return Some(Refusal::Cluster(self.cluster.clone()));
        }
        // An observer holds nothing, so its settings matter to nobody.
        if self.settings != other.settings && !self.observer && !other.observer {
            return Some(Refusal::Settings(self.settings.clone()));
        }
        None
    }
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is this very node.
    #[error("it is this node itself")]
    Myself,
    /// Another protocol.
    #[error("it speaks protocol {0}, this node {PROTOCOL}")]
    Protocol(u16),
    /// Another cluster.
    #[error("it belongs to cluster `{0}`")]
    Cluster(String),
    /// Other settings.
    #[error("its settings differ: {0}")]
    Settings(String),
    /// Another secret.
    #[error("it has another secret")]
    Secret,
    /// Too many who have not shown themselves yet.
    #[error("it is busy with others that have not proved themselves")]
    Busy,
}

impl Refusal {
    /// Whether it will be the same the next time.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Refusal::Busy | Refusal::Myself)
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Letter {
    Hello(Hello),
    Welcome(Hello, [u8; 32]),
    Proof([u8; 32]),
    Refused(Refusal),
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("not a letter of a node")]
    Malformed,
    /// The other end refused, or this one did.
    #[error("{0}")]
    Refused(Refusal),
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
        return Err(HandshakeError::Refused(Refusal::Protocol(protocol)));
    }
    match postcard::take_from_bytes(body) {
        Ok((letter, [])) => Ok(letter),
        _ => Err(HandshakeError::Malformed),
    }
}

/// Tells the other end why; that it may not listen any more does not matter.
pub(crate) async fn refuse(writer: &mut Writer, refusal: Refusal) -> HandshakeError {
    let _ = send(writer, &Letter::Refused(refusal.clone())).await;
    HandshakeError::Refused(refusal)
}

/// The dialler's part. `wanted` is asked before anything is promised: `false` ends it as [`Refusal::Busy`] without a word.
pub(crate) async fn dial(
    (reader, writer): (&mut Reader, &mut Writer),
    me: &Hello,
    key: &[u8; 32],
    wanted: impl FnOnce(&Hello) -> bool,
) -> Result<Hello, HandshakeError> {
    let talk = async {
        send(writer, &Letter::Hello(me.clone())).await?;
        let (other, shown) = match receive(reader).await {
            Ok(Letter::Welcome(other, shown)) => (other, shown),
            Ok(Letter::Refused(refusal)) => return Err(HandshakeError::Refused(refusal)),
            Ok(Letter::Hello(_) | Letter::Proof(_)) => return Err(HandshakeError::Malformed),
            Err(error) => return Err(error),
        };
        if let Some(refusal) = other.objection(me) {
            let _ = refuse(writer, me.objection(&other).unwrap_or(Refusal::Myself)).await;
            return Err(HandshakeError::Refused(refusal));
        }
        if !same(&shown, &proof(key, LISTENER, me, &other)) {
            return Err(refuse(writer, Refusal::Secret).await);
        }
        if !wanted(&other) {
            return Err(HandshakeError::Refused(Refusal::Busy));
        }
        send(writer, &Letter::Proof(proof(key, DIALLER, me, &other))).await?;
        Ok(other)
    };
    tokio::time::timeout(BOUND, talk).await.unwrap_or(Err(HandshakeError::Slow))
}

/// The listener's part.
pub(crate) async fn accept((reader, writer): (&mut Reader, &mut Writer), me: &Hello, key: &[u8; 32]) -> Result<Hello, HandshakeError> {
    let talk = async {
        let other = match receive(reader).await {
            Ok(Letter::Hello(other)) => other,
            Ok(_) => return Err(HandshakeError::Malformed),
            Err(HandshakeError::Refused(theirs)) => {
                let _ = refuse(writer, Refusal::Protocol(PROTOCOL)).await;
                return Err(HandshakeError::Refused(theirs));
            }
            Err(error) => return Err(error),
        };
        if let Some(refusal) = me.objection(&other) {
            return Err(refuse(writer, refusal).await);
        }
        send(writer, &Letter::Welcome(me.clone(), proof(key, LISTENER, &other, me))).await?;
        match receive(reader).await? {
            Letter::Proof(shown) if same(&shown, &proof(key, DIALLER, &other, me)) => Ok(other),
            Letter::Proof(_) => Err(HandshakeError::Refused(Refusal::Secret)),
            Letter::Refused(refusal) => Err(HandshakeError::Refused(refusal)),
            Letter::Hello(_) | Letter::Welcome(..) => Err(HandshakeError::Malformed),
        }
    };
    tokio::time::timeout(BOUND, talk).await.unwrap_or(Err(HandshakeError::Slow))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        };
        Hello::new("c", "settings".to_owned(), &node, [life as u8; 32])
    }

    async fn pair() -> ((Reader, Writer), (Reader, Writer)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (transport::split(dialled).unwrap(), transport::split(accepted).unwrap())
    }

    type Met = Result<Hello, HandshakeError>;

    async fn meet(a: Hello, a_key: [u8; 32], b: Hello, b_key: [u8; 32]) -> (Met, Met) {
        let (mut dialler, mut listener) = pair().await;
        tokio::join!(
            // The ends close when their part is over, as in life.
            async {
                let met = dial((&mut dialler.0, &mut dialler.1), &a, &a_key, |_| true).await;
                drop(dialler);
                met
            },
            async {
                let met = accept((&mut listener.0, &mut listener.1), &b, &b_key).await;
                drop(listener);
                met
            }
        )
    }

    fn refusal(met: Met) -> Refusal {
        match met {
            Err(HandshakeError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn two_who_share_a_secret_learn_who_the_other_is() {
        let (a, b) = meet(hello(1), [7; 32], hello(2), [7; 32]).await;
        assert_eq!((a.unwrap(), b.unwrap()), (hello(2), hello(1)));
    }

    #[tokio::test]
    async fn another_secret_is_refused_by_both_ends() {
        let (a, b) = meet(hello(1), [7; 32], hello(2), [8; 32]).await;
        assert_eq!((refusal(a), refusal(b)), (Refusal::Secret, Refusal::Secret));
    }

    #[tokio::test]
    async fn whoever_does_not_fit_is_told_why() {
        let other = Hello { cluster: "d".to_owned(), ..hello(2) };
        let (a, b) = meet(hello(1), [7; 32], other, [7; 32]).await;
        assert_eq!(refusal(a), Refusal::Cluster("d".to_owned()));
        refusal(b);
        let other = Hello { settings: "others".to_owned(), ..hello(2) };
        let (a, _) = meet(hello(1), [7; 32], other.clone(), [7; 32]).await;
        assert_eq!(refusal(a), Refusal::Settings("others".to_owned()));
        let (a, b) = meet(Hello { observer: true, ..hello(1) }, [7; 32], other, [7; 32]).await;
        assert!(a.is_ok() && b.is_ok());
        let (a, b) = meet(hello(1), [7; 32], hello(1), [7; 32]).await;
        assert_eq!((refusal(a), refusal(b)), (Refusal::Myself, Refusal::Myself));
        let newer = Hello { protocol: PROTOCOL + 1, ..hello(2) };
        let (a, b) = meet(newer, [7; 32], hello(1), [7; 32]).await;
        assert_eq!((refusal(a), refusal(b)), (Refusal::Protocol(PROTOCOL), Refusal::Protocol(PROTOCOL + 1)));
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
        let (met, ()) = tokio::join!(accept((&mut listener.0, &mut listener.1), &me, &[7; 32]), thief);
        assert_eq!(refusal(met), Refusal::Secret);
    }

    #[tokio::test]
    async fn a_proof_is_good_for_one_connection() {
        let (one, other) = (hello(1), Hello { nonce: [9; 32], ..hello(1) });
        assert_ne!(proof(&[7; 32], DIALLER, &one, &hello(2)), proof(&[7; 32], DIALLER, &other, &hello(2)));
        assert_ne!(proof(&[7; 32], DIALLER, &one, &hello(2)), proof(&[7; 32], DIALLER, &one, &Hello { nonce: [9; 32], ..hello(2) }));
    }

    #[test]
    fn a_letter_fits_with_the_longest_names() {
        let long = "x".repeat(255);
        let hello = Hello { cluster: long.clone(), settings: long.clone(), name: long.clone(), addr: long.clone(), http: long, ..hello(1) };
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
