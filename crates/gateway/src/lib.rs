//! A balancer that keeps a visitor with the server that has their session, and knows what to do when it is gone.
//!
//! It reads the route, the part of a cookie behind its last `.`, and gives the request to the member of that name: `NAME-r`, where a
//! session is now, before the session's own cookie `NAME`, which names where it was born. A
//! visitor without a route goes to the less loaded of two random members; one whose member is gone goes to a member that holds a
//! copy of the session, if [`Placement`] knows one. A draining member keeps its visitors and gets no new ones.
//!
//! ```no_run
//! # async fn example() -> Result<(), outlive_gateway::StartError> {
//! use outlive_gateway::{Address, Gateway};
//! use std::time::Duration;
//!
//! let [listen, a, b] = ["localhost:8080", "app1:9001", "10.0.0.2:9001"].map(|addr| addr.parse::<Address>().expect("an address"));
//! let gateway = Gateway::builder()
//!     .listen(listen)
//!     .member("a", a)
//!     .member("b", b)
//!     .start()
//!     .await?;
//! println!("ready http://{}", gateway.local_addr());
//! gateway.shutdown(Duration::from_secs(30)).await;
//! # Ok(())
//! # }
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`routing`] | who answers: pure |
//! | `gateway` | listener, worker threads, limits, shutdown |
//! | `client` | one client connection and its clock |
//! | `proxy` | one request and its answer |
//! | `resend` | the same request once more |
//! | `upstream` | connections to members |
//! | `socket` | how bytes are written |
//! | `table` | members, their health and counters |
//! | `headers`, `forwarded` | what changes on the way, and who is believed |

mod client;
mod forwarded;
mod gateway;
mod headers;
mod proxy;
mod resend;
pub mod routing;
mod socket;
mod table;
mod upstream;

pub use outlive_core::address::Address;

pub use forwarded::{Network, NetworkError};
pub use gateway::{Builder, Gateway, Limits, Running, StartError, Stats, Stopped};
pub use routing::{MemberInfo, Placement, State};
pub use table::{Directory, MemberStats};
