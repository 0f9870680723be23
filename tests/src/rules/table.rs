//! The rules, each with the packet that it ends and what has to be said about it.

/// What is sent.
#[derive(Clone, Copy)]
pub(super) enum Traffic {
    /// The client opens a TCP connection.
    Tcp(&'static str),
    /// The client sends over UDP.
    Udp(&'static str),
    /// The node itself sends over UDP.
    NodeUdp(&'static str),
}

impl Traffic {
    /// Where it is sent.
    pub(super) const fn to(self) -> &'static str {
        match self {
            Self::Tcp(address) | Self::Udp(address) | Self::NodeUdp(address) => address,
        }
    }
}

/// Rules, a packet, and what has to be said about it.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Lines for the node's namespace.
    pub(super) rules: &'static [&'static str],
    pub(super) traffic: Traffic,
    pub(super) cause: &'static str,
    /// The diagnosis' subject.
    pub(super) subject: &'static str,
    pub(super) certainty: &'static str,
    /// One of the fixes' lines.
    pub(super) fix: &'static str,
    /// The packet's way to the rule.
    pub(super) before: &'static [&'static str],
    /// What the rule did.
    pub(super) stages: &'static [&'static str],
    /// What its end in words begins with: kernels that give a reason add it.
    pub(super) ending: &'static str,
}

/// The way from the client to the node.
const ARRIVED: &[&str] = &["[client] postrouting", "eth0", "[node] eth0"];
/// The way through a node without conntrack.
const UNTRACKED: &[&str] = &[
    "[client] postrouting",
    "eth0",
    "[node] eth0",
    "route forward",
];
/// The way through a node whose rules ask conntrack.
const TRACKED: &[&str] = &[
    "[client] postrouting",
    "eth0",
    "[node] eth0",
    "prerouting",
    "route forward",
];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "iptables-nft: policy of FORWARD",
        rules: &[
            "iptables-nft -A FORWARD -p tcp --dport 8080 -j ACCEPT",
            "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "iptables-nft -P FORWARD DROP",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "forward-policy-drop",
        subject: "filter/FORWARD policy DROP",
        certainty: "certain",
        fix: "iptables-nft -P FORWARD ACCEPT",
        before: TRACKED,
        stages: &["✗ forward: dropped by filter/FORWARD policy DROP"],
        ending: "dropped",
    },
    Case {
        name: "iptables-legacy: policy of FORWARD",
        rules: &[
            "iptables-legacy -N OTHER",
            "iptables-legacy -A OTHER -s 203.0.113.0/24 -j DROP",
            "iptables-legacy -A FORWARD -j OTHER",
            "iptables-legacy -A FORWARD -i nosuch+ -j ACCEPT",
            "iptables-legacy -P FORWARD DROP",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "forward-policy-drop",
        subject: "filter/FORWARD policy DROP",
        certainty: "certain",
        fix: "iptables-legacy -P FORWARD ACCEPT",
        before: UNTRACKED,
        stages: &["✗ forward: dropped by filter/FORWARD policy DROP"],
        ending: "dropped",
    },
    Case {
        name: "nft: policy of a forward chain",
        rules: &[
            "nft add table inet fw",
            "nft add chain inet fw transit { type filter hook forward priority 0 ; policy drop ; }",
            "nft add rule inet fw transit ct state established,related accept",
            "nft add rule inet fw transit ip daddr 10.244.0.0/24 tcp dport 8000-8999 accept",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "forward-policy-drop",
        subject: "inet fw/transit policy DROP",
        certainty: "certain",
        fix: "nft chain inet fw transit '{ policy accept ; }'",
        before: TRACKED,
        stages: &["✗ forward: dropped by inet fw/transit policy DROP"],
        ending: "dropped",
    },
    Case {
        name: "iptables-nft: third rule of FORWARD",
        rules: &[
            "iptables-nft -A FORWARD -p udp -j DROP",
            "iptables-nft -A FORWARD -p tcp -m multiport --dports 81,82:90 -j DROP",
            "iptables-nft -A FORWARD -s 192.0.2.0/24 -p tcp --dport 80 -m comment --comment maintenance -j DROP",
            "iptables-nft -A FORWARD -j DROP",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "filter-rule-drop",
        subject: "filter/FORWARD rule 3",
        certainty: "certain",
        fix: "iptables-nft -D FORWARD 3",
        before: UNTRACKED,
        stages: &["✗ forward: dropped by filter/FORWARD rule 3 \"maintenance\""],
        ending: "dropped",
    },
    Case {
        name: "iptables-legacy: rule of a chain behind a jump",
        rules: &[
            "iptables-legacy -N BLOCK",
            "iptables-legacy -A BLOCK -d 10.244.0.8 -j DROP",
            "iptables-legacy -A BLOCK -p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -j DROP",
            "iptables-legacy -A FORWARD -m addrtype --dst-type LOCAL -j DROP",
            "iptables-legacy -A FORWARD -o nosuch0 -j DROP",
            "iptables-legacy -A FORWARD -i eth0 -j BLOCK",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "filter-rule-drop",
        subject: "filter/BLOCK rule 2",
        certainty: "certain",
        fix: "iptables-legacy -D BLOCK 2",
        before: TRACKED,
        stages: &["✗ forward: dropped by filter/BLOCK rule 2"],
        ending: "dropped",
    },
    Case {
        name: "nft: rule behind a jump",
        rules: &[
            "nft add table ip fw",
            "nft add chain ip fw forward { type filter hook forward priority 10 ; }",
            "nft add chain ip fw block",
            "nft add rule ip fw block tcp dport 81 drop",
            "nft add rule ip fw block ip saddr 192.0.2.2 ip daddr 10.244.0.0/16 tcp dport 80 counter drop comment HANDLE",
            "nft add rule ip fw forward iifname eth0 jump block",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "filter-rule-drop",
        subject: "ip fw/block handle HANDLE",
        certainty: "certain",
        fix: "nft delete rule ip fw block handle HANDLE",
        before: UNTRACKED,
        stages: &["✗ forward: dropped by ip fw/block handle HANDLE \"HANDLE\""],
        ending: "dropped",
    },
    Case {
        name: "iptables-nft: INPUT of the node",
        rules: &["iptables-nft -A INPUT -p udp --dport 5353 -j DROP"],
        traffic: Traffic::Udp("192.0.2.1:5353"),
        cause: "filter-rule-drop",
        subject: "filter/INPUT rule 1",
        certainty: "certain",
        fix: "iptables-nft -D INPUT 1",
        before: ARRIVED,
        stages: &["route local", "✗ input: dropped by filter/INPUT rule 1"],
        ending: "dropped",
    },
    Case {
        name: "iptables-legacy: OUTPUT of the node",
        rules: &[
            "iptables-legacy -A OUTPUT -o eth0 -j ACCEPT",
            "iptables-legacy -A OUTPUT -d 10.244.0.9 -p udp -j DROP",
        ],
        traffic: Traffic::NodeUdp("10.244.0.9:5353"),
        cause: "filter-rule-drop",
        subject: "filter/OUTPUT rule 2",
        certainty: "certain",
        fix: "iptables-legacy -D OUTPUT 2",
        before: &[],
        stages: &["[node] ✗ output: dropped by filter/OUTPUT rule 2"],
        ending: "dropped",
    },
    Case {
        name: "iptables-nft: a raw table before conntrack",
        rules: &["iptables-nft -t raw -A PREROUTING -i eth0 -p tcp --dport 80 -j DROP"],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "filter-rule-drop",
        subject: "raw/PREROUTING rule 1",
        certainty: "certain",
        fix: "iptables-nft -t raw -D PREROUTING 1",
        before: ARRIVED,
        stages: &["✗ prerouting: dropped by raw/PREROUTING rule 1"],
        ending: "dropped",
    },
    Case {
        name: "iptables-nft: REJECT of a service without endpoints",
        rules: &[
            "iptables-nft -N KUBE-SERVICES",
            "iptables-nft -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES",
            "iptables-nft -A KUBE-SERVICES -d 10.96.0.21 -p tcp -m comment --comment other/one:http -m tcp --dport 80 -j ACCEPT",
            "iptables-nft -A KUBE-SERVICES -d 10.96.0.20 -p tcp -m comment --comment shop/web:http_has_no_endpoints -m tcp --dport 80 -j REJECT",
        ],
        traffic: Traffic::Tcp("10.96.0.20:80"),
        cause: "service-no-endpoints",
        subject: "tcp 10.96.0.20:80",
        certainty: "certain",
        fix: "kubectl -n shop get endpointslices -l kubernetes.io/service-name=web",
        before: TRACKED,
        stages: &[
            "✗ forward: rejected by filter/KUBE-SERVICES rule 2 \"shop/web:http has no endpoints\"",
            "ICMP port unreachable sent",
        ],
        ending: "refused with an ICMP error",
    },
    Case {
        name: "iptables-legacy: REJECT of a service without endpoints",
        rules: &[
            "iptables-legacy -N KUBE-SERVICES",
            "iptables-legacy -A FORWARD -j KUBE-SERVICES",
            "iptables-legacy -A KUBE-SERVICES -d 10.96.0.20 -p udp -m comment --comment shop/dns:dns_has_no_endpoints -m udp --dport 53 -j REJECT",
        ],
        traffic: Traffic::Udp("10.96.0.20:53"),
        cause: "service-no-endpoints",
        subject: "udp 10.96.0.20:53",
        certainty: "certain",
        fix: "kubectl -n shop get endpointslices -l kubernetes.io/service-name=dns",
        before: UNTRACKED,
        stages: &[
            "✗ forward: rejected by filter/KUBE-SERVICES rule 1 \"shop/dns:dns has no endpoints\"",
            "ICMP port unreachable sent",
        ],
        ending: "refused with an ICMP error",
    },
    Case {
        name: "iptables-nft: loadBalancerSourceRanges",
        rules: &[
            "iptables-nft -N KUBE-PROXY-FIREWALL",
            "iptables-nft -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
            "iptables-nft -A KUBE-PROXY-FIREWALL -d 10.96.0.30 -p tcp -m comment --comment shop/lb:http_traffic_not_accepted_by_KUBE-FW-X -m tcp --dport 80 -j DROP",
        ],
        traffic: Traffic::Tcp("10.96.0.30:80"),
        cause: "lb-source-range",
        subject: "tcp 10.96.0.30:80",
        certainty: "certain",
        fix: "\"value\":\"192.0.2.2/32\"",
        before: TRACKED,
        stages: &[
            "✗ forward: dropped by filter/KUBE-PROXY-FIREWALL rule 1 \"shop/lb:http traffic not accepted by KUBE-FW-X\"",
        ],
        ending: "dropped",
    },
    Case {
        name: "iptables-legacy: loadBalancerSourceRanges by mark",
        rules: &[
            "iptables-legacy -t mangle -A PREROUTING -d 10.96.0.30 -j MARK --set-xmark 0x8000/0x8000",
            "iptables-legacy -N KUBE-FIREWALL",
            "iptables-legacy -A FORWARD -j KUBE-FIREWALL",
            "iptables-legacy -A KUBE-FIREWALL -m comment --comment kubernetes_firewall_for_dropping_marked_packets -m mark --mark 0x8000/0x8000 -j DROP",
        ],
        traffic: Traffic::Tcp("10.96.0.30:80"),
        cause: "lb-source-range",
        subject: "tcp 10.96.0.30:80",
        certainty: "likely",
        fix: "\"value\":\"192.0.2.2/32\"",
        before: TRACKED,
        stages: &[
            "✗ forward: dropped by filter/KUBE-FIREWALL rule 1 \"kubernetes firewall for dropping marked packets\"",
        ],
        ending: "dropped",
    },
    Case {
        name: "iptables-nft: a policy chain of the container network",
        rules: &[
            "iptables-nft -N cali-FORWARD",
            "iptables-nft -N cali-tw-cali0123",
            "iptables-nft -A FORWARD -j cali-FORWARD",
            "iptables-nft -A cali-FORWARD -o pod0 -g cali-tw-cali0123",
            "iptables-nft -A cali-tw-cali0123 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "iptables-nft -A cali-tw-cali0123 -m mark --mark 0x10000/0x10000 -j RETURN",
            "iptables-nft -A cali-tw-cali0123 -m comment --comment Drop_if_no_policies_passed_packet -j DROP",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "network-policy-drop",
        subject: "filter/cali-tw-cali0123 rule 3",
        certainty: "likely",
        fix: "kubectl get networkpolicy -A",
        before: TRACKED,
        stages: &[
            "✗ forward: dropped by filter/cali-tw-cali0123 rule 3 \"Drop if no policies passed packet\"",
        ],
        ending: "dropped",
    },
    Case {
        name: "nft: a set's elements",
        rules: &[
            "nft add table ip fw",
            "nft add chain ip fw forward { type filter hook forward priority 0 ; }",
            "nft add set ip fw ports { type inet_service ; }",
            "nft add element ip fw ports { 80 }",
            "nft add element ip fw ports { 443 }",
            "nft add set ip fw others { type inet_service ; flags interval ; }",
            "nft add element ip fw others { 81-8080 }",
            "nft add rule ip fw forward tcp dport @others drop",
            "nft add rule ip fw forward tcp dport @ports drop comment HANDLE",
            "nft add rule ip fw forward drop",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "filter-rule-drop",
        subject: "ip fw/forward handle HANDLE",
        certainty: "certain",
        fix: "nft delete rule ip fw forward handle HANDLE",
        before: UNTRACKED,
        stages: &["✗ forward: dropped by ip fw/forward handle HANDLE \"HANDLE\""],
        ending: "dropped",
    },
    Case {
        name: "nft: conditions that cannot be decided, one place left",
        rules: &[
            "nft add table ip fw",
            "nft add chain ip fw forward { type filter hook forward priority 0 ; }",
            "nft add set ip fw pairs { type ipv4_addr . inet_service ; }",
            "nft add element ip fw pairs { 10.244.0.9 . 80 }",
            "nft add rule ip fw forward ip daddr . tcp dport @pairs drop comment HANDLE",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "filter-rule-drop",
        subject: "ip fw/forward handle HANDLE",
        certainty: "certain",
        fix: "nft delete rule ip fw forward handle HANDLE",
        before: UNTRACKED,
        stages: &["✗ forward: dropped by ip fw/forward handle HANDLE \"HANDLE\""],
        ending: "dropped",
    },
    Case {
        name: "nft: rule behind verdict maps and an anonymous set",
        rules: &[
            "nft add table inet fw",
            "nft add chain inet fw transit { type filter hook forward priority 0 ; policy drop ; }",
            "nft add chain inet fw transit_ipv4",
            "nft add chain inet fw transit_ipv6",
            "nft add rule inet fw transit ct state vmap { established : accept, related : accept, invalid : drop }",
            "nft add rule inet fw transit meta protocol vmap { ip : jump transit_ipv4, ip6 : jump transit_ipv6 }",
            "nft add rule inet fw transit_ipv4 tcp dport { 443, 8000-8999 } accept",
            "nft add rule inet fw transit_ipv4 tcp dport { 80, 81 } drop comment HANDLE",
            "nft add rule inet fw transit_ipv6 drop",
        ],
        traffic: Traffic::Tcp("10.244.0.9:80"),
        cause: "filter-rule-drop",
        subject: "inet fw/transit_ipv4 handle HANDLE",
        certainty: "certain",
        fix: "nft delete rule inet fw transit_ipv4 handle HANDLE",
        before: TRACKED,
        stages: &["✗ forward: dropped by inet fw/transit_ipv4 handle HANDLE \"HANDLE\""],
        ending: "dropped",
    },
    Case {
        name: "nft: reject",
        rules: &[
            "nft add table inet fw",
            "nft add chain inet fw transit { type filter hook forward priority 0 ; }",
            "nft add rule inet fw transit udp dport 53 reject comment HANDLE",
        ],
        traffic: Traffic::Udp("10.244.0.9:53"),
        cause: "filter-rule-drop",
        subject: "inet fw/transit handle HANDLE",
        certainty: "certain",
        fix: "nft delete rule inet fw transit handle HANDLE",
        before: UNTRACKED,
        stages: &[
            "✗ forward: rejected by inet fw/transit handle HANDLE \"HANDLE\"",
            "ICMP port unreachable sent",
        ],
        ending: "refused with an ICMP error",
    },
];
