//! The node agent: finds the pods of this node, redirects their traffic to the proxy, and tells the proxy about them.

pub mod redirect;
