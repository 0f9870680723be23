//! Flows by number, side by side in one piece of memory.
//!
//! They live long and are small, journeys come and go and are large: mixed in one heap, flows would
//! pin what journeys leave.

use hashbrown::HashMap;
use slab::Slab;

use super::Flow;

#[derive(Default)]
pub(super) struct Store {
    flows: Slab<Flow>,
    keys: HashMap<u64, u32>,
}

impl Store {
    fn key(&self, id: u64) -> Option<usize> {
        self.keys.get(&id).map(|&key| key as usize)
    }

    pub(super) fn get(&self, id: u64) -> Option<&Flow> {
        self.flows.get(self.key(id)?)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Flow> {
        let key = self.key(id)?;
        self.flows.get_mut(key)
    }

    pub(super) fn insert(&mut self, flow: Flow) {
        let id = flow.id;
        // Far fewer than 2³² are kept.
        self.keys.insert(id, self.flows.insert(flow) as u32);
    }

    pub(super) fn remove(&mut self, id: u64) {
        if let Some(key) = self.keys.remove(&id) {
            self.flows.try_remove(key as usize);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().map(|(_, flow)| flow)
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }
}
