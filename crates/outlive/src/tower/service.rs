use crate::request::{Guard, Slot};
use crate::tower::{ResponseFuture, SessionLayer};
use core::task::{Context, Poll};
use http::{Request, Response};
use tower_service::Service;

/// A service whose requests have a session. Made by [`SessionLayer`].
#[derive(Clone, Debug)]
pub struct SessionService<S> {
    pub(crate) inner: S,
    pub(crate) layer: SessionLayer,
}

impl<S, B, R> Service<Request<B>> for SessionService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let options = self.layer.options;
        let outer = request.extensions().get::<Slot>().filter(|outer| outer.is_of(&self.layer.node));
        let guard = if let Some(outer) = outer {
            if options.exclusive {
                outer.make_exclusive();
            }
            if options.no_touch {
                outer.only_look();
            }
            Guard::joining(outer.clone())
        } else {
            let slot = Slot::new(self.layer.node.clone(), options.exclusive, !options.no_touch);
            request.extensions_mut().insert(slot.clone());
            Guard::new(slot)
        };
        ResponseFuture::new(self.inner.call(request), guard, options)
    }
}
