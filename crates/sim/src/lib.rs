//! outlive-sim
