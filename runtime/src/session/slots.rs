//! Which sequence of the engine holds which tokens, for whom, and under which adapter.
//!
//! A prompt goes to the sequence of its owner that it shares the most tokens with, so that the next turn of a chat is read
//! only from where it is new. Nobody gets a sequence that holds somebody else's tokens without its being emptied: how fast
//! an answer begins would tell what others asked.

use super::Session;

impl Session {
    /// Goes on with the cache of `owner` that `prompt` begins like, or with an emptied one: with the one that was not used
    /// for longest, when none is empty. What one owner asked speeds up no other's answer.
    pub fn take_slot(&mut self, owner: u64, prompt: &[u32]) {
        if self.slots.take(owner, prompt) {
            self.engine.truncate(self.slots.seq(), 0);
        }
    }
}

/// One sequence.
#[derive(Debug, Clone, Default)]
struct Slot {
    tokens: Vec<u32>,
    owner: u64,
    adapter: Option<usize>,
    /// Time of the last use, on a clock that counts uses.
    used: u64,
    /// A generation beside others goes on here: nobody else may have it.
    held: bool,
}

/// All sequences of an engine: some are held by generations that go on beside each other, one of the rest is in use by calls
/// that come one by one.
#[derive(Debug)]
pub(super) struct Slots {
    all: Vec<Slot>,
    seq: usize,
    uses: u64,
    /// What is computed from here on is computed with this.
    pub adapter: Option<usize>,
}

impl Slots {
    pub fn new(n: usize) -> Self {
        Self { all: vec![Slot::default(); n.max(1)], seq: 0, uses: 0, adapter: None }
    }

    /// The sequence in use.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Tokens of the sequence in use.
    pub fn tokens(&mut self) -> &mut Vec<u32> {
        &mut self.all[self.seq].tokens
    }

    /// Number of tokens of the sequence in use.
    pub fn len(&self) -> usize {
        self.all[self.seq].tokens.len()
    }

    /// Takes a sequence for `prompt` into use; `true` when the engine must empty it first.
    pub fn take(&mut self, owner: u64, prompt: &[u32]) -> bool {
        let Some(seq) = self.choose(owner, prompt) else { return false };
        self.seq = seq;
        self.give(seq, owner)
    }

    /// The sequence of `owner`, under the adapter in use, that `prompt` begins like, or the idle one that was not used for
    /// longest.
    fn choose(&self, owner: u64, prompt: &[u32]) -> Option<usize> {
        // A beginning that all prompts share (a template's first words) is no reason to overwrite another chat.
        let mine = |slot: &Slot| (slot.owner, slot.adapter) == (owner, self.adapter);
        let fits = |slot: &Slot| mine(slot) && 2 * slot.common(prompt) >= slot.tokens.len().min(prompt.len()).max(1);
        let idle = || (0..self.all.len()).filter(|&i| !self.all[i].held);
        let best = idle().filter(|&i| fits(&self.all[i])).max_by_key(|&i| self.all[i].common(prompt));
        best.or_else(|| idle().min_by_key(|&i| (!self.all[i].tokens.is_empty(), self.all[i].used)))
    }

    fn give(&mut self, seq: usize, owner: u64) -> bool {
        self.uses += 1;
        let slot = &mut self.all[seq];
        slot.used = self.uses;
        let stranger = std::mem::replace(&mut slot.owner, owner) != owner;
        if stranger {
            slot.tokens.clear();
        }
        stranger
    }

    /// A sequence is under this adapter, and was read under no other.
    pub fn settle(&mut self, seq: usize, adapter: Option<usize>) {
        let slot = &mut self.all[seq];
        if std::mem::replace(&mut slot.adapter, adapter) != adapter {
            slot.tokens.clear();
        }
    }

    /// Takes a sequence out of the others' reach until [`Slots::free`], with whether the engine must empty it first; `None`
    /// when all are held.
    pub fn hold(&mut self, owner: u64, prompt: &[u32]) -> Option<(usize, bool)> {
        let seq = self.choose(owner, prompt)?;
        self.all[seq].held = true;
        Some((seq, self.give(seq, owner)))
    }

    /// A held sequence is idle again, and keeps its tokens for a prompt that begins like them.
    pub fn free(&mut self, seq: usize) {
        self.uses += 1;
        self.all[seq].used = self.uses;
        self.all[seq].held = false;
    }

    /// Tokens of a sequence.
    pub fn tokens_of(&mut self, seq: usize) -> &mut Vec<u32> {
        &mut self.all[seq].tokens
    }

    /// How many tokens of `prompt` a sequence begins with, and the sequence of `owner`, under the same adapter, that begins
    /// with the most, held ones too: what it holds so far may be copied.
    pub fn common(&self, seq: usize, owner: u64, prompt: &[u32]) -> (usize, Option<(usize, usize)>) {
        let (own, adapter) = (self.all[seq].common(prompt), self.all[seq].adapter);
        let mine = |slot: &Slot| (slot.owner, slot.adapter) == (owner, adapter);
        let others = (0..self.all.len()).filter(|&i| i != seq && mine(&self.all[i]));
        (own, others.map(|i| (i, self.all[i].common(prompt))).max_by_key(|(_, n)| *n))
    }

    /// Sequences that nobody holds.
    pub fn idle(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.all.len()).filter(|&i| !self.all[i].held)
    }

    /// Brings a sequence that nobody holds into use, if the one in use is held; `false` when all are.
    pub fn find_idle(&mut self) -> bool {
        if !self.all[self.seq].held {
            return true;
        }
        let idle = self.idle().next();
        self.seq = idle.unwrap_or(self.seq);
        idle.is_some()
    }
}

impl Slot {
    /// Tokens that it and `prompt` begin with.
    fn common(&self, prompt: &[u32]) -> usize {
        self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;

    /// Uses a sequence for `prompt`, as a session does.
    fn ask(slots: &mut Slots, owner: u64, prompt: &[u32]) -> (usize, bool) {
        let emptied = slots.take(owner, prompt);
        *slots.tokens() = prompt.to_vec();
        (slots.seq(), emptied)
    }

    #[test]
    fn a_second_turn_finds_its_first_and_another_chat_gets_an_empty_sequence() {
        let mut slots = Slots::new(2);
        let (a, _) = ask(&mut slots, 7, &[1, 2, 3, 4]);
        let (b, _) = ask(&mut slots, 7, &[1, 8, 9, 9]);
        assert_ne!(a, b, "one shared token of four is no reason to overwrite");
        assert_eq!(ask(&mut slots, 7, &[1, 2, 3, 4, 5, 6]), (a, false));
        assert_eq!(ask(&mut slots, 7, &[1, 8, 9, 9, 9]), (b, false));
        assert_eq!(ask(&mut slots, 7, &[5, 5]).0, a, "the one not used for longest makes room");
    }

    #[test]
    fn what_one_owner_asked_is_never_seen_by_another() {
        let mut slots = Slots::new(1);
        ask(&mut slots, 7, &[1, 2, 3]);
        assert!(slots.take(8, &[1, 2, 3]), "the engine must forget it");
        assert_eq!(slots.len(), 0);
        assert!(slots.take(7, &[1, 2, 3]));
    }

    #[test]
    fn what_is_held_is_nobody_elses_until_it_is_free() {
        let mut slots = Slots::new(2);
        let (a, _) = ask(&mut slots, 7, &[1, 2, 3, 4]);
        assert_eq!(slots.hold(7, &[1, 2, 3, 4, 5]), Some((a, false)), "its own chat");
        assert!(slots.find_idle() && slots.seq() != a);
        let (b, _) = slots.hold(7, &[1, 2, 3, 4, 5]).unwrap();
        assert_ne!(a, b);
        assert_eq!(slots.common(b, 7, &[1, 2, 3, 9]), (0, Some((a, 3))), "the other chat's beginning can be copied");
        assert_eq!(slots.common(b, 8, &[1, 2, 3, 9]), (0, None), "but not for somebody else");
        assert_eq!(slots.hold(8, &[1]), None);
        assert!(!slots.find_idle());
        slots.free(a);
        assert_eq!(slots.hold(8, &[1, 2, 3]), Some((a, true)), "emptied for another owner");
        assert!(slots.tokens_of(a).is_empty());
    }

    #[test]
    fn what_one_adapter_computed_is_not_gone_on_with_under_another() {
        let mut slots = Slots::new(2);
        let (base, _) = ask(&mut slots, 7, &[1, 2, 3]);
        slots.adapter = Some(0);
        let (tuned, _) = ask(&mut slots, 7, &[1, 2, 3]);
        assert_ne!(base, tuned, "an empty sequence is taken");
        slots.settle(tuned, Some(0));
        assert_eq!(slots.len(), 0);
        *slots.tokens() = vec![1, 2, 3];
        slots.settle(tuned, Some(0));
        assert_eq!(slots.len(), 3);
        slots.adapter = None;
        assert_eq!(ask(&mut slots, 7, &[1, 2, 3, 4]), (base, false));
        slots.settle(base, None);
        assert_eq!(slots.len(), 4);
    }

    #[test]
    fn a_copied_beginning_never_comes_from_another_adapter() {
        let mut slots = Slots::new(3);
        // Of one owner, all going on: the model alone, then under an adapter, then whatever the third is under.
        let hold = |slots: &mut Slots, adapter: Option<usize>, prompt: &[u32]| {
            slots.adapter = adapter;
            let (seq, _) = slots.hold(7, prompt).unwrap();
            slots.settle(seq, adapter);
            let found = slots.common(seq, 7, prompt);
            *slots.tokens_of(seq) = prompt.to_vec();
            (seq, found)
        };
        let (base, _) = hold(&mut slots, None, &[1, 2, 3, 4, 5]);
        let (tuned, found) = hold(&mut slots, Some(0), &[1, 2, 3, 4, 5, 6]);
        assert_eq!(found, (0, None), "the model alone has read it all, under no adapter");
        let (third, found) = hold(&mut slots, Some(1), &[1, 2, 3, 4, 5, 6]);
        assert_eq!(found, (0, None), "nor from the one adapter to the other");
        slots.free(third);
        assert_eq!(hold(&mut slots, Some(0), &[1, 2, 3, 4, 5, 6, 7]), (third, (0, Some((tuned, 6)))));
        slots.free(third);
        assert_eq!(hold(&mut slots, None, &[1, 2, 3, 4, 5, 6, 7]), (third, (0, Some((base, 5)))));
    }
}
