//! What an address is, whatever form it came in.
//!
//! In: an address as it stood on a wire or in an answer of the DNS. Out: its plain form, and whether the world can reach it. Never:
//! resolves a name, or trusts an embedding.
//!
//! Canonicalise first, then policy: an IPv4 address hides in IPv6 in many ways (CVE-2026-27624 and others), and each of them must meet
//! the same rule as the plain form. IANA special-purpose registries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address without its disguise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Canonical {
    Plain(IpAddr),
    /// An IPv6 form that carries this IPv4 address.
    Inner(Ipv4Addr),
    /// Teredo, 6to4 (RFC 8656 §21.4), or a form that hides an address we cannot see.
    Never,
}

pub fn canonical(address: IpAddr) -> Canonical {
    let IpAddr::V6(v6) = address else {
        return Canonical::Plain(address);
    };
    let segments = v6.segments();
    let low = Ipv4Addr::from_bits(v6.to_bits() as u32);
    match segments {
        // ::ffff:a.b.c.d and ::ffff:0:a.b.c.d
        [0, 0, 0, 0, 0, 0xFFFF, _, _] | [0, 0, 0, 0, 0xFFFF, 0, _, _] => Canonical::Inner(low),
        // ::a.b.c.d, with :: and ::1 among them: both are refused as what they are
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Canonical::Plain(address),
        [0, 0, 0, 0, 0, 0, _, _] => Canonical::Inner(low),
        // 64:ff9b::/96 and the local 64:ff9b:1::/48, whose layout only its operator knows
        [0x64, 0xFF9B, 0, 0, 0, 0, _, _] => Canonical::Inner(low),
        [0x64, 0xFF9B, 1, ..] => Canonical::Never,
        // 6to4 and Teredo
        [0x2002, ..] | [0x2001, 0, ..] => Canonical::Never,
        _ if is_isatap(address) => Canonical::Inner(low),
        _ => Canonical::Plain(address),
    }
}

/// RFC 5214: an interface identifier that carries an IPv4 address, in any network, so that the address around it counts too.
pub fn is_isatap(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if matches!(v6.segments(), [_, _, _, _, 0 | 0x200, 0x5EFE, _, _]))
}

/// Everything that the IANA registries do not call globally reachable, and multicast.
pub fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => SPECIAL_V4.iter().any(|(network, length)| v4(*network, *length, ip)),
        // All unicast that is in use lies in 2000::/3; the rest is special by being elsewhere.
        IpAddr::V6(ip) => {
            !v6([0x2000, 0, 0], 3, ip) || SPECIAL_V6.iter().any(|(network, length)| v6(*network, *length, ip))
        }
    }
}

const SPECIAL_V4: [([u8; 4], u32); 17] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([192, 175, 48, 0], 24),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    // 224/4 multicast and 240/4 reserved with the broadcast address
    ([224, 0, 0, 0], 3),
];

/// Within 2000::/3, by the first three segments and a length.
const SPECIAL_V6: [([u16; 3], u32); 5] = [
    // Protocol assignments, Teredo, benchmarking, ORCHID
    ([0x2001, 0, 0], 23),
    // Documentation, old and new
    ([0x2001, 0x0DB8, 0], 32),
    ([0x3FFF, 0, 0], 20),
    // 6to4
    ([0x2002, 0, 0], 16),
    // AS112
    ([0x2620, 0x004F, 0x8000], 48),
];

fn v4(network: [u8; 4], length: u32, ip: Ipv4Addr) -> bool {
    (ip.to_bits() ^ u32::from_be_bytes(network)) >> (32 - length) == 0
}

fn v6([first, second, third]: [u16; 3], length: u32, ip: Ipv6Addr) -> bool {
    let network = (u128::from(first) << 112) | (u128::from(second) << 96) | (u128::from(third) << 80);
    (ip.to_bits() ^ network) >> (128 - length) == 0
}

/// A network prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    network: u128,
    mask: u128,
    is_v6: bool,
}

impl Prefix {
    /// `None` for a length beyond the family's. Bits beyond the length are dropped.
    pub const fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (bits, width, is_v6) = match address {
            IpAddr::V4(ip) => ((ip.to_bits() as u128) << 96, 32, false),
            IpAddr::V6(ip) => (ip.to_bits(), 128, true),
        };
        if length > width {
            return None;
        }
        let mask = if length == 0 {
            0
        } else {
            u128::MAX << (128 - length as u32)
        };
        Some(Self {
            network: bits & mask,
            mask,
            is_v6,
        })
    }

    /// `10.0.0.0/8`, `fd00::/8`, or one address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = text
            .split_once('/')
            .map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().ok()?;
        let length = match length {
            Some(length) => length.parse().ok()?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Self::new(address, length)
    }

    /// Bits that count, of 32 or 128.
    pub const fn length(&self) -> u32 {
        self.mask.count_ones()
    }

    pub const fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => !self.is_v6 && ((ip.to_bits() as u128) << 96) & self.mask == self.network,
            IpAddr::V6(ip) => self.is_v6 && ip.to_bits() & self.mask == self.network,
        }
    }
}

/// Prints as nothing: an operator's networks are nobody's business in a log.
impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prefix(<private>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_embedding_shows_what_it_carries() {
        let inner = |text: &str| match canonical(text.parse().unwrap()) {
            Canonical::Inner(inner) => Some(inner.to_string()),
            _ => None,
        };
        for form in [
            "::ffff:10.0.0.1",
            "::ffff:0:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2a00::5efe:10.0.0.1",
        ] {
            assert_eq!(inner(form).as_deref(), Some("10.0.0.1"), "{form}");
        }
        for plain in ["10.0.0.1", "::", "::1", "2a00::1"] {
            assert!(
                canonical(plain.parse().unwrap()) == Canonical::Plain(plain.parse().unwrap()),
                "{plain}"
            );
        }
        for never in ["2002:a00:1::1", "2001:0:808:808::1", "64:ff9b:1::8.8.8.8"] {
            assert!(canonical(never.parse().unwrap()) == Canonical::Never, "{never}");
        }
    }

    #[test]
    fn special_networks_end_where_the_registries_say() {
        for (address, special) in [
            ("2620:4f:7fff:ffff::1", false),
            ("2620:4f:8000::1", true),
            ("2620:4f:8001::1", false),
            ("2001:1ff::1", true),
            ("2001:200::1", false),
            ("3fff:fff::1", true),
            ("3fff:1000::1", false),
            ("1fff::1", true),
            ("4000::1", true),
            ("100.127.255.255", true),
            ("100.128.0.0", false),
        ] {
            assert_eq!(is_special(address.parse().unwrap()), special, "{address}");
        }
    }

    proptest! {
        #[test]
        fn a_prefix_contains_what_its_bits_say(address: u32, other: u32, length in 0u8..=32) {
            let prefix = Prefix::new(IpAddr::V4(address.into()), length).unwrap();
            let same = (0..u32::from(length)).all(|bit| (address ^ other) & (1 << (31 - bit)) == 0);
            prop_assert_eq!(prefix.contains(IpAddr::V4(other.into())), same);
        }
    }
}
