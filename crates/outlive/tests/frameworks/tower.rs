//! tower alone, which is what poem, salvo or a bare hyper server need: a service that finds its handlers itself.

use crate::{Ask, Framework, Routes};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use std::convert::Infallible;
use std::sync::Arc;
use tower::util::BoxCloneSyncService;

pub(crate) struct Tower;

impl Framework for Tower {
    type App = BoxCloneSyncService<Request<Full<Bytes>>, Response<String>, Infallible>;

    fn serve(Routes { handlers, layers }: Routes) -> Self::App {
        let handlers = Arc::new(handlers);
        let service = tower::service_fn(move |request: Request<Full<Bytes>>| {
            let handler = handlers.iter().find(|(path, _)| *path == request.uri().path()).map(|(_, handler)| handler.clone());
            async move {
                let status = |status| Ok(Response::builder().status(status).body(String::new()).unwrap());
                let Some(handler) = handler else { return status(StatusCode::NOT_FOUND) };
                if request.method() != Method::GET && request.method() != Method::HEAD {
                    return status(StatusCode::METHOD_NOT_ALLOWED);
                }
                let query = request.uri().query().unwrap_or_default().to_owned();
                let open = Box::new(move || Box::pin(outlive::tower::session(&request)) as _);
                Ok(handler(Ask { query, open }).await)
            }
        });
        layers
            .into_iter()
            .fold(BoxCloneSyncService::new(service), |app, layer| BoxCloneSyncService::new(tower_layer::Layer::layer(&layer, app)))
    }
}
