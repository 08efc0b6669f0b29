use crate::error::CommitError;
use crate::node::{Durable, Step, Waiting};
use crate::request::Guard;
use crate::session::Session;
use crate::tower::layer::Options;
use crate::tower::messages::seal;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use http::Response;
use pin_project_lite::pin_project;

pin_project! {
    /// The response of a [`SessionService`](crate::tower::SessionService): the inner one's, after the commit. Dropped before, it takes
    /// back what was not committed.
    pub struct ResponseFuture<F, R> {
        // Gone before the commit: what is dropped with it had not ended.
        #[pin]
        inner: Option<F>,
        guard: Guard,
        options: Options,
        committing: Option<Committing<R>>,
    }
}

struct Committing<R> {
    session: Session,
    result: Waiting<Result<Durable, CommitError>>,
    answer: Response<R>,
}

/// Takes the request's changes back when the handler panics or fails, before another layer responds in its place.
struct Alarm<'a> {
    guard: &'a mut Guard,
    armed: bool,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.guard.fail();
        }
    }
}

impl<F, R> ResponseFuture<F, R> {
    pub(crate) fn new(inner: F, guard: Guard, options: Options) -> Self {
        ResponseFuture { inner: Some(inner), guard, options, committing: None }
    }
}

impl<F, R> core::fmt::Debug for ResponseFuture<F, R> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ResponseFuture").field("committing", &self.committing.is_some()).finish_non_exhaustive()
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = Result<Response<R>, E>;

    // Not inlined, it moves each response once more, that of a handler without the session too.
    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut() {
            let mut alarm = Alarm { guard: this.guard, armed: true };
            let polled = inner.poll(cx);
            alarm.armed = matches!(polled, Poll::Ready(Err(_)));
            drop(alarm);
            let mut answer = ready!(polled)?;
            this.inner.set(None);
            let Some((session, step)) = this.guard.finish(this.options.rollback.keeps(answer.status().as_u16())) else {
                return Poll::Ready(Ok(answer));
            };
            match step {
                Step::Ready(result) => {
                    seal(&session, result, &mut answer, this.options.debug_header);
                    return Poll::Ready(Ok(answer));
                }
                Step::Wait(result) => *this.committing = Some(Committing { session, result, answer }),
            }
        }
        let Some(committing) = this.committing else { return Poll::Pending };
        let result = ready!(committing.result.as_mut().poll(cx));
        match this.committing.take() {
            Some(Committing { session, mut answer, .. }) => {
                seal(&session, result, &mut answer, this.options.debug_header);
                Poll::Ready(Ok(answer))
            }
            None => Poll::Pending,
        }
    }
}
