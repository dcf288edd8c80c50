//! Interfaces, addresses and routes of the lab, over rtnetlink.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use futures::TryStreamExt;
use rtnetlink::{Handle, IpVersion, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Place, WIRE};
use crate::base::{Error, Result, code};
use crate::net::NetNs;

/// A node's side of its pods.
const BRIDGE: &str = "pods0";
/// A pod's interface.
const POD_INTERFACE: &str = "eth0";

/// Brings `lo` up.
///
/// # Errors
/// `DEMO_UNSUPPORTED` with what the kernel said; so for all of this file.
pub fn loopback_up(netns: &NetNs) -> Result<()> {
    inside(netns, "bring the loopback up", |handle| async move {
        up(&handle, "lo").await?;
        Ok(())
    })
}

/// How many routing rules a namespace has.
///
/// # Errors
/// As above.
pub fn rules(netns: &NetNs, version: IpVersion) -> Result<usize> {
    let mut count = 0;
    let counted = &mut count;
    inside(netns, "list routing rules", |handle| async move {
        *counted = handle.rule().get(version).execute().try_collect::<Vec<_>>().await?.len();
        Ok(())
    })?;
    Ok(count)
}

/// The bridge of a node, with the pods' gateway address.
pub(super) fn bridge(node: &Place) -> Result<()> {
    let gateway = gateway(node);
    inside(&node.netns, "make a bridge", |handle| async move {
        handle.link().add(LinkBridge::new(BRIDGE).build()).execute().await?;
        address(&handle, BRIDGE, gateway).await
    })
}

/// One veth pair between two nodes, and each other's pods routed over it.
pub(super) fn wire(one: &Place, two: &Place) -> Result<()> {
    let far = two.netns.clone();
    inside(&one.netns, "lay the wire", |handle| async move {
        handle.link().add(LinkVeth::new(WIRE, "far0").build()).execute().await?;
        let index = index(&handle, "far0").await?;
        // Moved with its final name: both ends are called the same, each in its own namespace.
        let moved = LinkUnspec::new_with_index(index).name(WIRE).setns_by_fd(far.as_fd().as_raw_fd()).build();
        handle.link().change(moved).execute().await
    })?;
    for (here, there) in [(one, two), (two, one)] {
        let (own, next_hop, pods) = (here.ip(), there.ip(), Ipv4Addr::new(10, 77, there.node, 0));
        inside(&here.netns, "route over the wire", |handle| async move {
            address(&handle, WIRE, own).await?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(pods, 24).gateway(next_hop).build();
            handle.route().add(route).execute().await
        })?;
    }
    Ok(())
}

/// The veth pair of a pod, its addresses and its default route.
pub(super) fn pod(node: &Place, pod: &Place) -> Result<()> {
    let (host_side, target) = (format!("veth-{}", pod.name), pod.netns.clone());
    inside(&node.netns, "plug a pod in", |handle| async move {
        handle.link().add(LinkVeth::new(&host_side, POD_INTERFACE).build()).execute().await?;
        let peer = index(&handle, POD_INTERFACE).await?;
        handle.link().change(LinkUnspec::new_with_index(peer).setns_by_fd(target.as_fd().as_raw_fd()).build()).execute().await?;
        let (port, bridge) = (index(&handle, &host_side).await?, index(&handle, BRIDGE).await?);
        handle.link().change(LinkUnspec::new_with_index(port).controller(bridge).up().build()).execute().await
    })?;
    let (ips, gateway) = (pod.ips.clone(), gateway(node));
    inside(&pod.netns, "give a pod its addresses", |handle| async move {
        for ip in ips {
            address(&handle, POD_INTERFACE, ip).await?;
        }
        handle.route().add(RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build()).execute().await
    })
}

fn gateway(node: &Place) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, node.node, 1)
}

/// Adds an address of a /24 and brings the interface up.
async fn address(handle: &Handle, name: &str, ip: Ipv4Addr) -> std::result::Result<(), rtnetlink::Error> {
    let index = up(handle, name).await?;
    handle.address().add(index, IpAddr::V4(ip), 24).execute().await
}

async fn up(handle: &Handle, name: &str) -> std::result::Result<u32, rtnetlink::Error> {
    let index = index(handle, name).await?;
    handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(index)
}

async fn index(handle: &Handle, name: &str) -> std::result::Result<u32, rtnetlink::Error> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
    found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
}

/// Runs `work` with a netlink connection of `netns`, on a thread that ends there.
fn inside<F, W>(netns: &NetNs, what: &str, work: F) -> Result<()>
where
    F: FnOnce(Handle) -> W + Send,
    W: Future<Output = std::result::Result<(), rtnetlink::Error>>,
{
    let failed = |error: std::io::Error| Error::caused(&code::DEMO_UNSUPPORTED, what.to_owned(), error);
    let talk = || {
        netns.enter().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            let connection = tokio::spawn(connection);
            let done = work(handle).await.map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, what.to_owned(), error));
            connection.abort();
            done
        })
    };
    std::thread::scope(|scope| scope.spawn(talk).join()).map_err(|_| Error::internal(format!("{what}: the thread ended by itself")))?
}
