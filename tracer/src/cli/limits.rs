//! What tracing may cost, as typed.

use clap::Args;

use crate::session::{Limits, Session};

/// What was typed.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct LimitArguments {
    /// Most kernel time of the programs, percent of one processor; above it whole flows are left out,
    /// which is said and counted. 0 for no limit.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    max_cpu: f64,
    /// Most events a second; above it whole flows are left out as well.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rate: Option<u32>,
}

impl LimitArguments {
    /// Has a session keep the limits; says so when it cannot.
    pub(super) fn apply(self, session: &mut Session) {
        let kept = session.limit(Limits {
            cpu: (self.max_cpu > 0.0).then_some(self.max_cpu / 100.0),
            rate: self.max_rate.map(f64::from),
        });
        if !kept {
            eprintln!(
                "tracer: this kernel does not say what programs cost, so --max-cpu is not kept; --max-rate is"
            );
        }
    }
}

/// A share of one processor in percent.
fn percent(text: &str) -> Result<f64, String> {
    text.trim_end_matches('%')
        .parse()
        .ok()
        .filter(|percent: &f64| percent.is_finite() && *percent >= 0.0)
        .ok_or_else(|| {
            "percent of one processor are needed; examples: 5, 0.5, 0 for no limit".into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_as_people_type_them() {
        assert_eq!(percent("5"), Ok(5.0));
        assert_eq!(percent("0.5%"), Ok(0.5));
        for wrong in ["", "-1", "much", "inf", "NaN"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
