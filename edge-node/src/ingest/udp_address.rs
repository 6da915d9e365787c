//! `udp://HOST:PORT?interface=NAME`: where datagrams are waited for.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// Where to listen: an address of this machine, or a multicast group to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UdpAddress {
    pub(crate) at: SocketAddr,
    /// Where a group is joined; None: the kernel chooses.
    pub(crate) interface: Option<Interface>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Interface {
    /// `eth0`.
    Name(String),
    /// Its IPv4 address.
    Address(Ipv4Addr),
}

/// Longest name of an interface that Linux takes (IFNAMSIZ less its end).
const MAX_INTERFACE_BYTES: usize = 15;

impl UdpAddress {
    /// Reads what stands behind `udp://`. An empty host, or `@` before it as some players write, is any.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        let place = place.strip_prefix('@').unwrap_or(place);
        let place = place.strip_suffix('/').unwrap_or(place);
        let (host, port) = place
            .rsplit_once(':')
            .ok_or("give the port too: udp://0.0.0.0:5000")?;
        let ip = match host {
            "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host => host
                .strip_prefix('[')
                .and_then(|h| h.strip_suffix(']'))
                .unwrap_or(host)
                .parse()
                .map_err(|_| "give an IP address of this machine (or a multicast group), no name: udp://0.0.0.0:5000")?,
        };
        let port = port.parse().ok().filter(|&port| port != 0);
        let port = port.ok_or("give a port from 1 to 65535")?;
        let mut interface = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("interface", name)) => interface = Some(Interface::parse(name)?),
                _ => return Err("only ?interface=NAME may follow the port"),
            }
        }
        if interface.is_some() && !ip.is_multicast() {
            return Err(
                "?interface= is for multicast groups; else give the interface's own address as host",
            );
        }
        let at = SocketAddr::new(ip, port);
        Ok(Self { at, interface })
    }
}

impl Interface {
    fn parse(name: &str) -> Result<Self, &'static str> {
        if let Ok(address) = name.parse() {
            return Ok(Self::Address(address));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@');
        if name.is_empty()
            || name.starts_with('.')
            || name.len() > MAX_INTERFACE_BYTES
            || !name.bytes().all(plain)
        {
            return Err("give an interface by its name (eth0) or its IPv4 address");
        }
        Ok(Self::Name(name.to_owned()))
    }
}

impl fmt::Display for UdpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp://{}", self.at)?;
        match &self.interface {
            None => Ok(()),
            Some(Interface::Name(name)) => write!(f, "?interface={name}"),
            Some(Interface::Address(address)) => write!(f, "?interface={address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("0.0.0.0:5000", "udp://0.0.0.0:5000"),
            (":5000", "udp://0.0.0.0:5000"),
            ("@:5000", "udp://0.0.0.0:5000"),
            ("[::1]:5000", "udp://[::1]:5000"),
            (
                "@239.1.1.1:1234?interface=eth0",
                "udp://239.1.1.1:1234?interface=eth0",
            ),
            (
                "239.1.1.1:1234?interface=10.0.0.2",
                "udp://239.1.1.1:1234?interface=10.0.0.2",
            ),
            ("[ff15::1]:1234", "udp://[ff15::1]:1234"),
        ] {
            let address = UdpAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), shown);
        }
        for (text, says) in [
            ("", "the port"),
            ("10.0.0.1", "the port"),
            ("camera:5000", "no name"),
            ("10.0.0.1:0", "1 to 65535"),
            ("10.0.0.1:70000", "1 to 65535"),
            ("10.0.0.1:5?pkt_size=1316", "only ?interface="),
            ("10.0.0.1:5?interface=eth0", "for multicast"),
            ("239.1.1.1:5?interface=../x", "by its name"),
            ("239.1.1.1:5?interface=", "by its name"),
        ] {
            let error = UdpAddress::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
