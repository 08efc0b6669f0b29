//! outlive-runtime
