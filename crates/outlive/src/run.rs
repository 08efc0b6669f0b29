//! Running a server to its orderly end: [`Outlive::run`].

use crate::error::RunError;
use crate::outlive::Outlive;
use core::error::Error;
use core::fmt;
use core::future::{Future, IntoFuture, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;
use std::io;
use tokio::sync::watch;

pub use outlive_runtime::DrainReport as Drain;

/// Resolves when the server is to stop accepting: this node's sessions are with others by then. Given to the server that
/// [`run`](Outlive::run) runs.
#[must_use = "give it to the server: axum's `with_graceful_shutdown(drained)`"]
pub struct Drained(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Drained {
    fn new(mut stop: watch::Receiver<bool>) -> Drained {
        Drained(Box::pin(async move {
            // Without a sender nobody runs the server any more.
            let _ = stop.wait_for(|stop| *stop).await;
        }))
    }
}

impl fmt::Debug for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Drained(..)")
    }
}

impl Future for Drained {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Outlive {
    /// Runs a server until SIGTERM or Ctrl-C, and ends in order. This node announces that it leaves, and its readiness says so. Its sessions
    /// are handed over (`drain_timeout`, 20 s) while the server keeps accepting and serving requests; new sessions may begin, and are
    /// handed over too. When that is done, and after SIGTERM not before `drain_notice` (5 s), so that balancers have seen it, the server
    /// stops accepting; requests in flight end, and so do sockets, streams and tasks that hold a session after their request, or are cut
    /// after `shutdown_grace` (10 s); what they committed last is flushed. A second signal waits for nothing but the store.
    ///
    /// It all takes no longer than the sum of the three, and half a second for goodbyes. Whatever ends a process that does not end by
    /// itself (systemd, Kubernetes) must wait longer than that.
    ///
    /// `drained` alone would not do: a request that ends after it still commits, so the node must outlive the server. Open streams and
    /// sockets keep it from ending until the grace time is over; let them watch [`draining`](Outlive::draining), so that their browsers
    /// connect elsewhere at once.
    ///
    /// # Errors
    /// [`RunError::Serve`] if the server failed; [`RunError::Abandoned`] if sessions are not known to be safe elsewhere. The only node
    /// of a cluster without a store has no elsewhere; that its sessions end with it is no error.
    pub async fn run<F, S, E>(&self, serve: F) -> Result<(), RunError>
    where
        F: FnOnce(Drained) -> S,
        S: IntoFuture<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut signals = Signals::listen().map_err(|e| RunError::Serve(e.into()))?;
        let (stop, stopped) = watch::channel(false);
        let mut server = pin!(serve(Drained::new(stopped)).into_future());
        let (mut served, mut timeout) = (None, self.node.drain_timeout);
        tokio::select! {
            result = &mut server => served = Some(result),
            signal = signals.next() => {
                timeout = self.leave(&mut server, &mut served, &mut signals, signal).await;
                stop.send_replace(true);
            }
        }
        let mut grace = pin!(tokio::time::sleep(self.node.shutdown_grace));
        if served.is_none() {
            served = tokio::select! {
                result = &mut server => Some(result),
                () = &mut grace => None,
                _ = signals.next() => None,
            };
            if served.is_none() {
                let grace = self.node.shutdown_grace;
                tracing::warn!("requests were still running {grace:?} after the last was accepted (shutdown_grace): they are cut");
            }
        }
        if served.is_some() {
            // The server knows nothing of upgraded connections and of tasks that its handlers have started.
            tokio::select! {
                () = self.outlived() => {}
                () = &mut grace => self.cut(),
                _ = signals.next() => self.cut(),
            }
        }
        let drain = self.drain_within(timeout).await;
        if let Some(Err(error)) = served {
            return Err(RunError::Serve(error.into()));
        }
        drain.map(drop)
    }

    /// Resolves when nobody holds a session after its request, and what the last such handle wrote has been committed.
    async fn outlived(&self) {
        // The sender lives as long as the node.
        let _ = self.node.outliving.subscribe().wait_for(|handles| *handles == 0).await;
    }

    fn cut(&self) {
        let sessions = *self.node.outliving.borrow();
        tracing::warn!(
            sessions,
            "sockets, streams or tasks still held sessions after the grace time; what they have not flushed is lost. \
             Let them end when `draining()` resolves"
        );
    }

    /// Hands over while the server runs; what is left of the time for it.
    async fn leave<S: Future>(
        &self,
        server: &mut Pin<&mut S>,
        served: &mut Option<S::Output>,
        signals: &mut Signals,
        signal: Signal,
    ) -> Duration {
        let node = &self.node;
        // Whoever presses keys is not a balancer, and where nobody else lives there is nobody to send requests to.
        let notice = if signal == Signal::Terminate && self.members() > 1 { node.drain_notice } else { Duration::ZERO };
        let numbers = self.stats().engine;
        let until = if notice.is_zero() { "until then".to_owned() } else { format!("for {notice:?} at least") };
        tracing::info!(
            "this node leaves: {} sessions and {} copies are handed over within {:?}, and requests are served {until}; a second signal ends \
             it at once",
            numbers.owned,
            numbers.backed,
            node.drain_timeout,
        );
        let (began, mut rest) = (tokio::time::Instant::now(), None);
        let mut notice = pin!(tokio::time::sleep(notice));
        let mut handover = pin!(node.runtime.hand_over(node.drain_timeout));
        let mut noticed = false;
        while rest.is_none() || !(noticed || served.is_some()) {
            tokio::select! {
                _ = &mut handover, if rest.is_none() => rest = Some(node.drain_timeout.saturating_sub(began.elapsed())),
                () = &mut notice, if !noticed => noticed = true,
                result = &mut *server, if served.is_none() => *served = Some(result),
                _ = signals.next() => {
                    noticed = true;
                    node.runtime.drain_faster();
                }
            }
        }
        rest.unwrap_or_default()
    }

    /// Leaves in order, without a server: for a framework that has its own way to end. Requests that are still running when it returns
    /// can no longer commit.
    ///
    /// # Errors
    /// [`RunError::Abandoned`].
    pub async fn drain(&self) -> Result<Drain, RunError> {
        self.drain_within(self.node.drain_timeout).await
    }

    async fn drain_within(&self, timeout: Duration) -> Result<Drain, RunError> {
        let alone = self.node.runtime.members().len() <= 1 && !self.node.has_store;
        let drain = self.node.runtime.drain(timeout).await;
        match drain.abandoned {
            0 => tracing::info!("this node has left: all that it held is elsewhere"),
            ended if alone => tracing::info!("this node has ended, and {ended} sessions with it: there is no other node, and no store"),
            abandoned => {
                tracing::error!(
                    "this node has left before {abandoned} sessions were elsewhere: they have fewer copies now, or none; \
                     drain_timeout is {:?}",
                    self.node.drain_timeout
                );
                return Err(RunError::Abandoned(abandoned));
            }
        }
        Ok(drain)
    }
}

/// What asks the process to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// Whatever runs it: systemd, Kubernetes, a person with `kill`.
    #[cfg_attr(not(unix), expect(dead_code, reason = "nothing else sends it"))]
    Terminate,
    /// A person at the terminal.
    Interrupt,
}

#[cfg(unix)]
struct Signals(tokio::signal::unix::Signal, tokio::signal::unix::Signal);

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn next(&mut self) -> Signal {
        poll_fn(|cx| match (self.0.poll_recv(cx), self.1.poll_recv(cx)) {
            (Poll::Ready(_), _) => Poll::Ready(Signal::Terminate),
            (_, Poll::Ready(_)) => Poll::Ready(Signal::Interrupt),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        })
        .await
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Signals> {
        Ok(Signals)
    }

    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            core::future::pending().await
        }
        Signal::Interrupt
    }
}
