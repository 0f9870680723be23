//! Records of a capture, one by one.

use std::sync::Arc;

use super::{Anonymizer, frame};
use crate::capture::{Header, Headers, Record, Sighting};
use crate::kube::{ClusterFacts, StoredCluster};
use crate::node::Reading;

impl Anonymizer {
    /// A record without what tells whose it is; `None` for one that is left out.
    ///
    /// Diagnoses are left out: their words hold names, and they are found again.
    ///
    /// # Errors
    /// For packets of another program, and for facts that cannot be taken apart.
    pub fn record(&self, record: Record) -> anyhow::Result<Option<Record>> {
        Ok(Some(match record {
            Record::Header(header) => Record::Header(Box::new(self.header(*header))),
            Record::Event(sighting) => Record::Event(Sighting {
                event: self.event(sighting.event),
                headers: sighting
                    .headers
                    .map(|headers| Headers::of_frame(&frame(self, headers.frame()))),
                ..sighting
            }),
            Record::Facts(Reading { occasion, facts }) => Record::Facts(Reading {
                occasion,
                facts: Arc::new(self.value(&*facts)?),
            }),
            Record::Cluster(Some(facts)) => {
                let stored: StoredCluster = self.value(&facts.stored())?;
                Record::Cluster(Some(Arc::new(ClusterFacts::from(stored))))
            }
            Record::Packet(_) => anyhow::bail!(
                "a packet of another program's capture: only captures of the tracer can be anonymised"
            ),
            Record::Diagnosis(_) => return Ok(None),
            Record::Cluster(None)
            | Record::Control(_)
            | Record::Symbols(_)
            | Record::Counters(_) => record,
        }))
    }

    fn header(&self, header: Header) -> Header {
        let Header {
            node,
            kernel,
            tool,
            filter,
            attached,
            not_seen,
            reasons,
            wall_ns,
            monotonic_ns,
        } = header;
        Header {
            node: self.text(&node),
            filter: self.text(&filter),
            not_seen: not_seen.iter().map(|text| self.text(text)).collect(),
            kernel,
            tool,
            attached,
            reasons,
            wall_ns,
            monotonic_ns,
        }
    }
}
