//! Pure: a session that gave no answer, as `status` lists it.

use serde::Serialize;

use super::print;
use crate::control::client::Fault;
use crate::error::{Exit, UserError};
use crate::session::registry::Entry;

/// What the run directory knows of the session, and why no more is known.
pub(super) struct Silent {
    pub(super) entry: Entry,
    pub(super) fault: Fault,
}

impl Silent {
    /// None where there is nothing to list.
    pub(super) fn new(entry: Entry, fault: Fault) -> Option<Self> {
        (!matches!(fault, Fault::Absent)).then_some(Self { entry, fault })
    }

    /// It may live for all that is known.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.fault, Fault::Absent | Fault::Dead)
    }

    /// It ought to have answered us.
    pub(super) fn is_at_fault(&self) -> bool {
        self.explain().exit == Exit::Failure
    }

    pub(super) fn explain(&self) -> UserError {
        self.fault.explain(self.entry.name.as_str())
    }

    /// Why it is in this state, in one line.
    pub(super) fn why(&self) -> String {
        print::clean(&format!("{}: {}", self.entry.name, self.fault))
    }

    /// Name, way, state, device and networks.
    pub(super) fn row(&self) -> Vec<String> {
        let state = if self.is_alive() { "not answering" } else { "dead" };
        let known = self.entry.meta.as_ref().map(|meta| {
            let cidr: Vec<String> = meta.cidr.iter().map(ToString::to_string).collect();
            [Some(meta.via.clone()), meta.device.clone(), Some(cidr.join(","))]
        });
        let [via, device, cidr] =
            known.unwrap_or_default().map(|known| known.unwrap_or_else(|| "-".to_owned()));
        vec![self.entry.name.to_string(), via, state.to_owned(), device, cidr]
    }

    /// Named as in the status of a session that answers; what is not known is null.
    pub(super) fn json(&self) -> impl Serialize {
        let meta = self.entry.meta.clone();
        let nets = |nets: Vec<ipnet::IpNet>| nets.iter().map(ToString::to_string).collect();
        let state = if self.is_alive() { "not_answering" } else { "dead" };
        let listed = Listed {
            name: self.entry.name.to_string(),
            state,
            last_error: self.fault.to_string(),
            ..Listed::default()
        };
        match meta {
            None => listed,
            Some(meta) => Listed {
                pid: Some(meta.pid),
                via: Some(meta.via),
                device: meta.device,
                local_ip: Some(nets(meta.local)),
                cidr: Some(nets(meta.cidr)),
                started_at: Some(meta.started_at),
                ..listed
            },
        }
    }
}

#[derive(Default, Serialize)]
struct Listed {
    name: String,
    pid: Option<u32>,
    state: &'static str,
    via: Option<String>,
    device: Option<String>,
    local_ip: Option<Vec<String>>,
    cidr: Option<Vec<String>>,
    started_at: Option<u64>,
    last_error: String,
}
