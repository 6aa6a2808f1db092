//! Addresses: of a container for us, and of us for a container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind};
use bollard::models::{ContainerInspectResponse, EndpointSettings};
use bollard::query_parameters::InspectNetworkOptions;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::engine::Engine;
use super::{find, name_of};

/// How long an address gets to answer.
const PROBE: Duration = Duration::from_secs(3);

/// The container whose network this one uses: itself, or the one that it joined.
pub(super) async fn owner(
    engine: &Engine,
    mut container: ContainerInspectResponse,
) -> Result<ContainerInspectResponse, AdapterError> {
    // Joining twice is refused by the engine; the bound is for a hostile one.
    for _ in 0..4 {
        let mode = mode(&container).to_owned();
        let Some(other) = mode.strip_prefix("container:") else { return Ok(container) };
        container = find::inspect_id(engine, other).await?;
    }
    Ok(container)
}

fn mode(container: &ContainerInspectResponse) -> &str {
    container.host_config.as_ref().and_then(|h| h.network_mode.as_deref()).unwrap_or_default()
}

fn uses_host(container: &ContainerInspectResponse) -> bool {
    mode(container) == "host"
}

/// Its networks, the default route's first.
fn networks(container: &ContainerInspectResponse) -> Vec<&EndpointSettings> {
    let all = container.network_settings.as_ref().and_then(|n| n.networks.as_ref());
    let mut named: Vec<_> = all.into_iter().flatten().collect();
    named.sort_by(|a, b| a.0.cmp(b.0));
    // One with a gateway can be reached from the host; an internal one may be.
    named.sort_by_key(|(_, n)| n.gateway.as_deref().unwrap_or_default().is_empty());
    named.into_iter().map(|(_, n)| n).collect()
}

pub(super) fn addresses(container: &ContainerInspectResponse) -> Vec<IpAddr> {
    if uses_host(container) {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    let parse = |text: &Option<String>| text.as_deref().and_then(|t| t.parse::<IpAddr>().ok());
    let networks = networks(container);
    let v4 = networks.iter().filter_map(|n| parse(&n.ip_address));
    v4.chain(networks.iter().filter_map(|n| parse(&n.global_ipv6_address))).collect()
}

/// The host of an engine that is reached by TCP.
fn engine_host(engine: &Engine) -> Option<&str> {
    let rest = engine.url().split_once("://").filter(|_| engine.socket().is_none())?.1;
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit_once(':').map_or(Some(authority), |(host, _)| Some(host.trim_matches(['[', ']'])))
}

pub(super) async fn endpoint(
    engine: &Engine,
    container: &ContainerInspectResponse,
    port: u16,
) -> Result<SocketAddr, AdapterError> {
    let name = name_of(container);
    let unavailable = |what: String| AdapterError::new(AdapterErrorKind::Unavailable, what);
    if container.state.as_ref().and_then(|s| s.running) != Some(true) {
        return Err(unavailable(format!("container `{name}` does not run: port {port} cannot be reached")));
    }
    let host = match engine_host(engine) {
        Some(host) => resolve(host).await,
        None => Some(Ipv4Addr::LOCALHOST.into()),
    };
    let mut candidates = Vec::new();
    if uses_host(container) {
        candidates.extend(host.map(|h| SocketAddr::new(h, port)));
    } else {
        // Straight to the container first: past the engine's proxy, which also accepts when nobody listens behind it.
        if engine.socket().is_some() {
            candidates.extend(addresses(container).into_iter().map(|a| SocketAddr::new(a, port)));
        }
        candidates.extend(published(container, port, host));
    }
    if candidates.is_empty() {
        return Err(unavailable(format!(
            "container `{name}` has no address that can be reached from here: publish its port {port}"
        )));
    }
    let mut probes: FuturesOrdered<_> = candidates
        .iter()
        .map(|address| async move {
            match tokio::time::timeout(PROBE, TcpStream::connect(address)).await {
                Ok(Ok(_)) => Ok(*address),
                Ok(Err(e)) => Err(format!("{address}: {e}")),
                Err(_) => Err(format!("{address}: no answer")),
            }
        })
        .collect();
    let mut refused = Vec::new();
    while let Some(probe) = probes.next().await {
        match probe {
            Ok(address) => return Ok(address),
            Err(why) => refused.push(why),
        }
    }
    Err(unavailable(format!("port {port} of container `{name}` cannot be reached ({})", refused.join("; "))))
}

async fn resolve(host: &str) -> Option<IpAddr> {
    let mut found = tokio::net::lookup_host((host, 0)).await.ok()?;
    found.next().map(|a| a.ip())
}

/// Where the engine publishes a port. `host` stands for "every address of the engine's host".
fn published(container: &ContainerInspectResponse, port: u16, host: Option<IpAddr>) -> Vec<SocketAddr> {
    let ports = container.network_settings.as_ref().and_then(|n| n.ports.as_ref());
    let bindings = ports.and_then(|p| p.get(&format!("{port}/tcp"))).and_then(Option::as_ref);
    let at = |ip: &str| match ip.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() => Some(ip),
        _ => host,
    };
    bindings
        .into_iter()
        .flatten()
        .filter_map(|b| {
            let port = b.host_port.as_deref()?.parse().ok()?;
            Some(SocketAddr::new(at(b.host_ip.as_deref().unwrap_or_default())?, port))
        })
        .collect()
}

pub(super) async fn host_address(
    engine: &Engine,
    container: &ContainerInspectResponse,
) -> Result<IpAddr, AdapterError> {
    let name = name_of(container);
    let unavailable = |what: String| Err(AdapterError::new(AdapterErrorKind::Unavailable, what));
    if engine.socket().is_none() {
        return unavailable(format!(
            "container `{name}` cannot reach this process: its engine is on another host"
        ));
    }
    if uses_host(container) {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    for network in networks(container) {
        let mut gateways = vec![network.gateway.clone().unwrap_or_default()];
        if let (Some(id), true) = (&network.network_id, gateways.iter().all(String::is_empty)) {
            // An internal network has no way out, but its bridge has an address on the host all the same.
            let client = engine.client().await?;
            let request = client.inspect_network(id, None::<InspectNetworkOptions>);
            let pools = engine.call("inspect a network", request).await?.ipam.and_then(|i| i.config);
            gateways.extend(pools.into_iter().flatten().filter_map(|c| c.gateway));
        }
        for gateway in gateways.iter().filter_map(|g| g.parse::<IpAddr>().ok()) {
            if TcpListener::bind((gateway, 0)).await.is_ok() {
                return Ok(gateway);
            }
        }
        // Not on the engine's host: perhaps this process is in a container of the same network.
        let theirs = network.ip_address.as_deref().and_then(|a| a.parse::<Ipv4Addr>().ok());
        if let (Some(theirs), Some(bits)) = (theirs, network.ip_prefix_len)
            && let Some(ours) = source_for(theirs).await
            && same_subnet(ours, theirs, bits)
        {
            return Ok(ours.into());
        }
    }
    unavailable(format!("no address of this host is known at which container `{name}` could reach it"))
}

/// The address from which this process would talk to `there`. Sends nothing.
async fn source_for(there: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect((there, 9)).await.ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ours) => Some(ours),
        IpAddr::V6(_) => None,
    }
}

fn same_subnet(a: Ipv4Addr, b: Ipv4Addr, bits: i64) -> bool {
    let shift = u32::try_from(32 - bits.clamp(1, 32)).unwrap_or(0);
    a.to_bits() >> shift == b.to_bits() >> shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets() {
        let same = |a: &str, b: &str, bits| same_subnet(a.parse().unwrap(), b.parse().unwrap(), bits);
        assert!(same("172.17.0.1", "172.17.200.9", 16));
        assert!(!same("172.17.0.1", "172.18.0.1", 16));
        assert!(same("10.0.0.1", "10.0.0.1", 32) && !same("10.0.0.1", "10.0.0.2", 32));
    }

    #[test]
    fn hosts_of_engines() {
        let host = |url: &str| engine_host(&Engine::new(url)).map(str::to_owned);
        assert_eq!(host("tcp://10.1.2.3:2375").as_deref(), Some("10.1.2.3"));
        assert_eq!(host("http://[::1]:2375/x").as_deref(), Some("::1"));
        assert_eq!(host("unix:///var/run/docker.sock"), None);
        assert_eq!(host("/var/run/docker.sock"), None);
    }
}
