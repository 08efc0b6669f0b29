//! axum: its router, its extractor.

use crate::{Ask, Framework, Routes};
use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::routing::get;
use outlive::Session;

pub(crate) struct Axum;

impl Framework for Axum {
    type App = Router;

    fn serve(Routes { handlers, layers }: Routes) -> Self::App {
        let mut app = Router::new();
        for (path, handler) in handlers {
            let answer = move |request: Request| {
                let (mut parts, _) = request.into_parts();
                let query = parts.uri.query().unwrap_or_default().to_owned();
                let open = Box::new(|| Box::pin(async move { Session::from_request_parts(&mut parts, &()).await }) as _);
                handler(Ask { query, open })
            };
            app = app.route(path, get(answer));
        }
        layers.into_iter().fold(app, |app, layer| app.layer(layer))
    }
}
