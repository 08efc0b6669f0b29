//! outlive-gateway
