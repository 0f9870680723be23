//! Words that say nothing of whose network it is: the kernel's, Kubernetes', container networks' and our own.
//!
//! Whoever names a pod with such a word keeps the name. A word that is missing here costs
//! readability, never privacy.

use std::collections::HashSet;
use std::sync::LazyLock;

/// Units of times and sizes behind a number.
pub(super) const UNITS: [&str; 10] = ["s", "m", "h", "d", "ms", "us", "ns", "Mi", "Gi", "Ki"];

/// Words, in lower case; several joined by hyphens or underscores are known when each is.
const WORDS: &str = "
    a about accept accepted add address addresses after against all an and any are arp as at
    be because been before behind both by
    can cannot check class closed config configuration connection connections could counters
    default destination device devices did dir disabled does dropped dropping drop
    each empty enabled end entered entries entry error every everything
    file files filter flags for forbidden forward forwarding found from
    gone group
    had has have here hook host hostname how
    id in inside interface into invalid is it its
    kept kernel
    leads left legacy less limit limited link links listeners local lost
    many marked matches may missing module modules more most
    name names namespace namespaces neighbour neighbours network networks never no node nodes none not
    of off on once one only open or other our out own owner
    packet packets peer permitted permission denied permitted pod pods policy port ports prefix process
    program programs
    queue queues
    read reader reading ready real refused reject replied reply request return role root route routes rule
    rules run running
    see seen server service services set socket sockets source state such sysctl system
    table tables than that the their them there these they this those time timed to too tool type
    unknown unreachable up use used user
    was were what when where which who why with without
    yes you your

    tcp udp icmp icmpv6 icmp6 sctp ip ips ip6 ipv4 ipv6 inet dns http https tls vlan gre ipip esp
    net core conf neigh vs bridge nf call iptables ip6tables ipset
    lo eth0 docker0 cni0 cbr0 tunl0 ip6tnl0 sit0 erspan0 gretap0 gre0 podman0 lxcbr0 virbr0 kube ipvs0
    nodelocaldns flannel.1 flannel.4096 flannel-v6.1 vxlan.calico vxlan-v6.calico wireguard.cali
    cilium host vxlan antrea gw0 weave
    veth cali cni lxc tap tun bond team dummy macvlan ipvlan vrf geneve wireguard ovs openvswitch
    raw mangle nat security prerouting input output postrouting broute
    nft nftables iptables nf_tables ipvs ipvsadm netfilter conntrack nf flannel flanneld calico canal
    cilium antrea kindnet router weave multus chain chains target verdict mark mask dport sport
    established related new untracked snat dnat masquerade masq jump goto queue log comment limit
    rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh
    syn synsent synrecv recv sent fin wait close last ack listen estab
    xdp tc tcx clsact ingress egress bpf cls act flower matchall u32 mirred gact pedit generic driver
    qdisc tbf htb hfsc netem fq codel cake pfifo bfifo fast mq mqprio prio sfq red pie ets noop
    prohibit blackhole throw unicast multicast anycast broadcast martian
    rp route_localnet localnet arp_announce announce arp_ignore ignore martians nonlocal bind range reserved
    somaxconn abort overflow max backlog syncookies conn reuse mode expire nodest quiescent template sloppy
    disable gc thresh1 thresh2 thresh3 buckets count liberal timeout stream
    operation permitted such device resource busy argument bad descriptor protocol supported
    exist exists

    kubernetes kubelet proxy cluster container runtime endpoint endpoints cri dockerd docker containerd crio
    plugin plugins portmap loopback tuning bandwidth firewall sbr
    ptp etc d bin usr opt var lib run proc sys conflist 10 sock unix remote kubeconfig yaml json
    iface mtu nodeport nodeports external internal balancer loadbalancer clusterip
    udp4 sep svc fw xlb ext svl nodes firewall ranges source-ranges masq canary hint hairpin load
    primary userspace kernelspace healthz metrics proxyterminatingendpoints
    pending succeeded failed terminating evicted
    app k8s io label labels zone topology region true false
    coredns apiserver controller manager scheduler etcd tigera system public lease

    a s p n
    ready containersready podscheduled initialized crashloopbackoff imagepullbackoff readinessgatesnotready
    containersnotready completed
";

/// Beginnings of names that software makes up; what is behind them is replaced.
const BEGINNINGS: [&str; 38] = [
    "KUBE-SVC-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-XLB-",
    "KUBE-EXT-",
    "KUBE-SVL-",
    "KUBE-NWPLCY-",
    "KUBE-POD-FW-",
    "KUBE-ROUTER-",
    "KUBE-NODE-",
    "CNI-",
    "CILIUM_",
    "WEAVE-NPC",
    "ANTREA-POL-",
    "FLANNEL-",
    "cali-pi-",
    "cali-po-",
    "cali-tw-",
    "cali-fw-",
    "cali-pri-",
    "cali-pro-",
    "cali-",
    "cali",
    "service-endpoints-",
    "service-",
    "endpoint-",
    "external-",
    "firewall-",
    "nodeport-",
    "cilium_",
    "veth",
    "lxc",
    "flannel",
    "br-",
    "vxlan",
    "cni-",
    "docker",
    "eth",
];

static KNOWN: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| WORDS.split_whitespace().collect());

/// True for a word of nobody's.
pub(super) fn knows(word: &str) -> bool {
    let lower = word.to_lowercase();
    let known = |part: &str| KNOWN.contains(part);
    known(&lower)
        || lower.contains(['-', '_'])
            && lower.split(['-', '_']).all(|part| {
                !part.starts_with(|letter: char| letter.is_ascii_digit()) && known(part)
            })
}

/// The beginning of a name that software made up; empty for other names.
pub(super) fn beginning(word: &str) -> &'static str {
    BEGINNINGS
        .into_iter()
        .filter(|beginning| word.starts_with(beginning))
        .max_by_key(|beginning| beginning.len())
        .unwrap_or_default()
}
