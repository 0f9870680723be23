//! A pod answers, and its answers do not reach the client.

use std::time::Duration;

use crate::scenario::traffic::tcp_attempt;
use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

const UNSEEN: Option<&str> = Some("what happens beyond the device is not seen");

pub(super) const SCENARIO: Scenario = Scenario {
    name: "answer-lost",
    expects: &["answer-lost"],
    variants: &[
        Variant {
            likely: UNSEEN,
            ..Variant::fault(
                "elsewhere",
                "a rule sends what the pod says into a tunnel that leads nowhere",
            )
        },
        Variant {
            likely: UNSEEN,
            ..Variant::fault("beyond", "the client's machine throws the answers away")
        },
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

/// Time for two repetitions, of a SYN after one and after three seconds.
const WAITS: Duration = Duration::from_millis(3500);

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let far = topology::far(world, &site)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let pod = at(options.pod, options.pod_port);
    let target = Target::custom("the pod", &far, pod, move |from| {
        tcp_attempt(from, pod, WAITS)
    });
    let (host, fault, fix) = match variant.name {
        "beyond" => {
            let drop = "INPUT -p tcp --tcp-flags SYN,ACK SYN,ACK -j DROP";
            (
                &far,
                vec![format!("iptables -A {drop}")],
                format!("iptables -D {drop}"),
            )
        }
        _ => {
            let rule = format!("from {}/32 lookup 77", options.pod);
            let fault = vec![
                "ip link add vpn0 up type dummy".into(),
                "ip route add default dev vpn0 table 77".into(),
                format!("ip rule add {rule}"),
            ];
            (&site.node, fault, format!("ip rule del {rule}"))
        }
    };
    if variant.fault {
        host.run_all(&fault)?;
    }
    Ok(Plan::fixed_by(vec![target.once()], host, [fix]))
}
