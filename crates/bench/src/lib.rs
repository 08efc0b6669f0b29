//! outlive-bench
