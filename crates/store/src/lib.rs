//! outlive-store
