//! Pure: which targets the agent dials at all.
//!
//! Everything may be dialled except what reaches the instance itself, its metadata or its own links.
//! A rule is a range with a verdict; the longest matching range decides, at equal length a rule of
//! the operator wins over a built-in one, and among the operator's a denial wins. So
//! `--allow 127.0.0.0/8` opens the loopback, `--allow 169.254.0.0/16` opens link-local but not the
//! metadata addresses, and `--deny 0.0.0.0/0 --deny ::/0 --allow 10.0.0.0/8` leaves one network.
//!
//! An IPv6 address that carries an IPv4 one is dialled only when both are allowed. A name is judged
//! by the addresses it resolves to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether the address lies inside; a range of one family holds none of the other.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (u32::from(network) ^ u32::from(address))
                    .checked_shr(32 - u32::from(self.prefix))
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (u128::from(network) ^ u128::from(address))
                    .checked_shr(128 - u32::from(self.prefix))
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    const fn v6(bits: u128, prefix: u8) -> Self {
        Self { network: IpAddr::V6(Ipv6Addr::from_bits(bits)), prefix }
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    /// Takes `10.0.0.0/8`, `fd00::/8` or a lone address. Host bits are an error, since they tell that
    /// something else was meant.
    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let wrong = || NotACidr(text.to_owned());
        let (network, prefix) = match text.split_once('/') {
            Some((network, prefix)) => (network, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = network.parse().map_err(|_| wrong())?;
        let longest = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None => longest,
        };
        if prefix > longest {
            return Err(wrong());
        }
        let host_bits = match network {
            IpAddr::V4(network) => u32::from(network).checked_shl(u32::from(prefix)).unwrap_or(0) != 0,
            IpAddr::V6(network) => u128::from(network).checked_shl(u32::from(prefix)).unwrap_or(0) != 0,
        };
        if host_bits { Err(wrong()) } else { Ok(Self { network, prefix }) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// A text that names no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotACidr(String);

impl fmt::Display for NotACidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not a network such as 10.0.0.0/8 or fd00::/8 with all host bits zero", self.0)
    }
}

impl std::error::Error for NotACidr {}

/// What the operator added to the built-in denials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
}

impl Rules {
    /// The built-in denials with the operator's own ranges.
    pub fn new(allow: Vec<Cidr>, deny: Vec<Cidr>) -> Self {
        Self { allow, deny }
    }

    /// Whether the agent may dial the address.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.judge(address)
            && match address {
                IpAddr::V4(_) => true,
                IpAddr::V6(address) => carried(address).into_iter().flatten().all(|v4| self.judge(v4.into())),
            }
    }

    fn judge(&self, address: IpAddr) -> bool {
        let longest = |ranges: &[Cidr]| {
            ranges.iter().filter(|range| range.contains(address)).map(|range| range.prefix).max()
        };
        let (allowed, denied) = (longest(&self.allow), longest(&self.deny));
        let built_in = longest(BUILT_IN);
        match allowed {
            Some(_) => allowed > denied && allowed >= built_in,
            None => denied.is_none() && built_in.is_none(),
        }
    }
}

/// The IPv4 addresses that an IPv6 address may lead to by translation or tunnelling.
fn carried(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let bytes = address.octets();
    let at = |indices: [usize; 4]| Some(Ipv4Addr::from(indices.map(|index| bytes[index])));
    let last = [12, 13, 14, 15];
    if address.is_unspecified() || address.is_loopback() {
        return [None, None];
    }
    if NAT64.contains(address.into())
        || COMPATIBLE.contains(address.into())
        || TRANSLATED.contains(address.into())
    {
        return [at(last), None];
    }
    if NAT64_LOCAL.contains(address.into()) {
        // The operator chooses how long the translator's prefix is: 48 bits (where bits 64 to 71 are
        // skipped) or 96 are the ones in use.
        return [at(last), at([6, 7, 9, 10])];
    }
    if SIX_TO_FOUR.contains(address.into()) {
        return [at([2, 3, 4, 5]), None];
    }
    if bytes[8..12] == [0, 0, 0x5e, 0xfe] || bytes[8..12] == [2, 0, 0x5e, 0xfe] {
        return [at(last), None];
    }
    [None, None]
}

const NAT64: Cidr = Cidr::v6(0x0064_ff9b << 96, 96);
const NAT64_LOCAL: Cidr = Cidr::v6(0x0064_ff9b_0001 << 80, 48);
const COMPATIBLE: Cidr = Cidr::v6(0, 96);
const TRANSLATED: Cidr = Cidr::v6(0xffff_0000 << 32, 96);
const SIX_TO_FOUR: Cidr = Cidr::v6(0x2002 << 112, 16);

/// Amazon's own services on each instance: metadata, DNS, time, credentials.
const EC2_SERVICES: u128 = 0xfd00_0ec2 << 96;

const BUILT_IN: &[Cidr] = &[
    // "This network": Linux takes 0.0.0.0 for the loopback.
    Cidr::v4(0, 0, 0, 0, 8),
    Cidr::v4(127, 0, 0, 0, 8),
    Cidr::v4(169, 254, 0, 0, 16),
    // Credentials: instance metadata, ECS tasks, EKS pods. Named so that opening link-local leaves them shut.
    Cidr::v4(169, 254, 169, 254, 32),
    Cidr::v4(169, 254, 170, 2, 32),
    Cidr::v4(169, 254, 170, 23, 32),
    Cidr::v4(224, 0, 0, 0, 4),
    Cidr::v4(255, 255, 255, 255, 32),
    Cidr::v6(0, 128),
    Cidr::v6(1, 128),
    Cidr::v6(EC2_SERVICES, 32),
    Cidr::v6(EC2_SERVICES | 0x254, 128),
    Cidr::v6(EC2_SERVICES | 0x23, 128),
    Cidr::v6(0xfe80 << 112, 10),
    Cidr::v6(0xff00 << 112, 8),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_rules_judge_each_address() {
        let table = [
            ("10.0.1.5", true),
            ("172.31.0.2", true),
            ("192.168.1.1", true),
            ("8.8.8.8", true),
            ("100.64.0.1", true),
            ("126.255.255.255", true),
            ("128.0.0.0", true),
            ("223.255.255.255", true),
            ("169.253.255.255", true),
            ("2600:1f18::1", true),
            ("fd12:3456::1", true),
            ("fd00:ec3::254", true),
            ("fe7f::1", true),
            ("fec0::1", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("127.0.0.1", false),
            ("127.255.255.254", false),
            ("169.254.0.1", false),
            ("169.254.169.254", false),
            ("169.254.169.253", false),
            ("169.254.170.2", false),
            ("169.254.170.23", false),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("fd00:ec2::254", false),
            ("fd00:ec2::23", false),
            ("fd00:ec2::253", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("ff02::1", false),
        ];
        let rules = Rules::default();
        for (address, allowed) in table {
            assert_eq!(rules.permits(address.parse().unwrap()), allowed, "{address}");
        }
    }

    #[test]
    fn an_ipv4_address_inside_an_ipv6_one_is_judged_too() {
        let table = [
            ("::ffff:10.0.1.5", true),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::10.0.1.5", true),
            ("::127.0.0.1", false),
            ("::169.254.169.254", false),
            ("64:ff9b::10.0.1.5", true),
            ("64:ff9b::169.254.169.254", false),
            ("64:ff9b::127.0.0.1", false),
            ("64:ff9b:1::169.254.169.254", false),
            ("64:ff9b:1:a9fe:00a9:fe00::", false),
            ("::ffff:0:169.254.169.254", false),
            ("2002:0a00:0105::1", true),
            ("2002:a9fe:a9fe::1", false),
            ("2002:7f00:0001::", false),
            ("2600:1f18::5efe:169.254.169.254", false),
            ("2600:1f18::200:5efe:127.0.0.1", false),
        ];
        let rules = Rules::default();
        for (address, allowed) in table {
            assert_eq!(rules.permits(address.parse().unwrap()), allowed, "{address}");
        }
    }

    #[test]
    fn the_longest_range_decides() {
        struct Case {
            allow: &'static [&'static str],
            deny: &'static [&'static str],
            address: &'static str,
            allowed: bool,
        }
        let case = |allow, deny, address, allowed| Case { allow, deny, address, allowed };
        let table = [
            case(&["127.0.0.0/8"], &[], "127.0.0.1", true),
            case(&["127.0.0.1"], &[], "127.0.0.1", true),
            case(&["127.0.0.1"], &[], "127.0.0.2", false),
            case(&["0.0.0.0/0"], &[], "127.0.0.1", false),
            case(&["169.254.0.0/16"], &[], "169.254.7.7", true),
            case(&["169.254.0.0/16"], &[], "169.254.169.254", false),
            case(&["169.254.169.254/32"], &[], "169.254.169.254", true),
            case(&["::1"], &[], "::1", true),
            case(&["fe80::/10"], &[], "fe80::1", true),
            case(&["127.0.0.1/32"], &[], "::ffff:127.0.0.1", true),
            case(&["64:ff9b::/96"], &[], "64:ff9b::7f00:1", false),
            case(&[], &["10.0.0.0/8"], "10.1.2.3", false),
            case(&[], &["10.0.0.0/8"], "::ffff:10.1.2.3", false),
            case(&[], &["10.0.0.0/8"], "64:ff9b::10.1.2.3", false),
            case(&[], &["10.0.0.0/8"], "11.1.2.3", true),
            case(&["10.1.0.0/16"], &["10.0.0.0/8"], "10.1.2.3", true),
            case(&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3", false),
            case(&["10.0.0.0/8"], &["10.0.0.0/8"], "10.1.2.3", false),
            case(&["10.0.0.0/8"], &["0.0.0.0/0", "::/0"], "10.1.2.3", true),
            case(&["10.0.0.0/8"], &["0.0.0.0/0", "::/0"], "11.1.2.3", false),
            case(&["10.0.0.0/8"], &["0.0.0.0/0", "::/0"], "2600::1", false),
        ];
        for (index, case) in table.iter().enumerate() {
            let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let rules = Rules::new(parse(case.allow), parse(case.deny));
            assert_eq!(rules.permits(case.address.parse().unwrap()), case.allowed, "row {index}");
        }
    }

    #[test]
    fn a_range_is_read_exactly() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("192.168.1.7", "192.168.1.7/32"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
        for text in
            ["", "10.0.0.0/33", "::/129", "10.0.0.1/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "db/8", "/8"]
        {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
