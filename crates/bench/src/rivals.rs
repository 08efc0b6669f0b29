//! The same handlers on tower-sessions: the newest with its store in memory, and the one before with its store in Redis, which has no
//! newer release.

use anyhow::Context;
use axum::Router;
use tower_sessions_redis_store::fred::prelude::{ClientLike, Config, Pool};

/// Connections to Redis.
const POOL: usize = 4;

macro_rules! handlers {
    () => {
        use ts::{Session, SessionManagerLayer, SessionStore};

        async fn read(session: Session) -> String {
            let name: Option<String> = session.get("name").await.ok().flatten();
            format!("{} {}\n", name.unwrap_or_default(), number(&session).await)
        }

        async fn update(session: Session) -> Result<String, String> {
            let name: Option<String> = session.get("name").await.map_err(|e| e.to_string())?;
            let n = number(&session).await + 1;
            session.insert("n", n).await.map_err(|e| e.to_string())?;
            Ok(format!("{} {n}\n", name.unwrap_or_default()))
        }

        async fn begin(session: Session) -> Result<String, String> {
            session.insert("name", super::NAME).await.map_err(|e| e.to_string())?;
            session.insert("n", 0_u64).await.map_err(|e| e.to_string())?;
            Ok(String::new())
        }

        async fn heavy(session: Session) -> Result<String, String> {
            session.insert("blob", "x".repeat(super::HEAVY)).await.map_err(|e| e.to_string())?;
            Ok(String::new())
        }

        async fn number(session: &Session) -> u64 {
            session.get("n").await.ok().flatten().unwrap_or(0)
        }

        pub(super) fn app(store: impl SessionStore + Clone) -> axum::Router {
            use axum::routing::get;
            super::plain()
                .route("/read", get(read))
                .route("/update", get(update))
                .route("/begin", get(begin))
                .route("/heavy", get(heavy))
                .layer(SessionManagerLayer::new(store))
        }
    };
}

mod memory {
    use tower_sessions as ts;
    handlers!();
}

mod redis {
    use tower_sessions_014 as ts;
    handlers!();
}

use crate::subjects::{HEAVY, NAME, plain};

/// Sessions in this process.
pub(crate) fn in_memory() -> Router {
    memory::app(tower_sessions::MemoryStore::default())
}

/// Sessions in the Redis server on that port.
pub(crate) async fn in_redis(port: u16) -> anyhow::Result<Router> {
    let config = Config::from_url(&format!("redis://127.0.0.1:{port}"))?;
    let pool = Pool::new(config, None, None, None, POOL)?;
    drop(pool.connect());
    pool.wait_for_connect().await.context("Redis does not answer")?;
    Ok(redis::app(tower_sessions_redis_store::RedisStore::new(pool)))
}
