//! Policy routing inside a pod: what carries the answer mark is delivered to this host, whatever its destination. So the
//! application's answers to a client's address reach the proxy that called in the client's name.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::inside;
use super::plan::{ANSWER_MARK, Family, MARK_MASK};
use crate::base::{Error, Result, code, deadline};
use crate::net::NetNs;

/// The routing table; the reference node agent uses the same.
const TABLE: u8 = 100;

/// Before the rule of the main table (32766).
const PRIORITY: u32 = 32764;

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;

const LIMIT: Duration = Duration::from_secs(5);

/// Puts rule and route in force; what is there already is fine.
///
/// # Errors
/// As the kernel says.
pub async fn install(netns: &NetNs) -> Result<()> {
    with(netns, async |handle, family| {
        let mut request = handle.rule().add();
        *request.message_mut() = rule(family);
        settle(request.execute().await, Errno::EEXIST, "add the rule")?;
        settle(handle.route().add(route(family)).execute().await, Errno::EEXIST, "add the route")?;
        Ok(true)
    })
    .await?;
    Ok(())
}

/// Removes rule and route; what is gone already is fine.
///
/// # Errors
/// As the kernel says.
pub async fn remove(netns: &NetNs) -> Result<()> {
    with(netns, async |handle, family| {
        settle(handle.rule().del(rule(family)).execute().await, Errno::ENOENT, "remove the rule")?;
        settle(handle.route().del(route(family)).execute().await, Errno::ESRCH, "remove the route")?;
        Ok(true)
    })
    .await?;
    Ok(())
}

/// Whether rule and route are in force.
///
/// # Errors
/// The kernel does not say.
pub async fn installed(netns: &NetNs) -> Result<bool> {
    with(netns, async |handle, family| {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let unread = |error| Error::caused(&code::ROUTE_FAILED, "read rules and routes", error);
        let rules: Vec<RuleMessage> = handle.rule().get(version).execute().try_collect().await.map_err(unread)?;
        let routes: Vec<RouteMessage> = handle.route().get(route(family)).execute().try_collect().await.map_err(unread)?;
        let wanted = rule(family);
        let has_rule = rules
            .iter()
            .any(|rule| rule.header.table == TABLE && wanted.attributes.iter().all(|attribute| rule.attributes.contains(attribute)));
        let has_route = routes.iter().any(|route| {
            let header = &route.header;
            (header.table, header.kind, header.destination_prefix_length) == (TABLE, RouteType::Local, 0)
        });
        Ok(has_rule && has_route)
    })
    .await
}

/// Does `work` for each family that the namespace has; true when all say so.
async fn with(netns: &NetNs, work: impl AsyncFn(&Handle, Family) -> Result<bool>) -> Result<bool> {
    let id = netns.id();
    let opened = netns.run(|| rtnetlink::new_connection().map(|connection| (connection, inside::has_ipv6())));
    let failed = |error| Error::caused(&code::ROUTE_FAILED, format!("open a netlink socket in {id}"), error);
    let ((connection, handle, _), ipv6) = opened.map_err(failed)?.map_err(failed)?;
    let driver = tokio::spawn(connection);
    let all = async {
        let v4 = work(&handle, Family::V4).await?;
        let v6 = !ipv6 || work(&handle, Family::V6).await?;
        Ok(v4 && v6)
    };
    let result = deadline(LIMIT, &code::ROUTE_FAILED, format!("routes in {id}"), all).await;
    driver.abort();
    result?
}

fn rule(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.table = TABLE;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Priority(PRIORITY), RuleAttribute::FwMark(ANSWER_MARK), RuleAttribute::FwMask(MARK_MASK)];
    message
}

fn route(family: Family) -> RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .table_id(TABLE.into())
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(LOOPBACK)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(TABLE.into())
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(LOOPBACK)
            .build(),
    }
}

fn settle(result: std::result::Result<(), rtnetlink::Error>, fine: Errno, what: &str) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(fine as i32) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(error)) => Err(Error::caused(&code::ROUTE_FAILED, what, error.to_io())),
        Err(error) => Err(Error::caused(&code::ROUTE_FAILED, what, error)),
    }
}
