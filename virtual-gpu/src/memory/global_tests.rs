use super::*;

fn memory() -> GlobalMemory {
    GlobalMemory::new(1 << 30)
}

#[test]
fn what_the_host_writes_it_reads() {
    let memory = memory();
    let address = memory.allocate(20_000).unwrap();
    let bytes: Vec<u8> = (0..20_000u32).map(|index| (index * 7 % 251) as u8).collect();
    memory.write(address, &bytes).unwrap();
    let mut found = vec![0; 20_000];
    memory.read(address, &mut found).unwrap();
    assert_eq!(found, bytes);
    let mut middle = vec![0; 9000];
    memory.read(address + 4001, &mut middle).unwrap();
    assert_eq!(middle, bytes[4001..13_001]);
}

#[test]
fn addresses_are_aligned_and_never_given_twice() {
    let memory = memory();
    let mut last = 0;
    for bytes in [1, 255, 256, 257, 1 << 20, 3] {
        let address = memory.allocate(bytes).unwrap();
        assert_eq!(address % 256, 0);
        assert!(address >= last, "an allocation in another's gap");
        last = address + bytes + bytes.max(GAP);
        memory.free(address).unwrap();
    }
    assert_eq!(memory.used(), 0);
}

#[test]
fn full_and_empty_are_errors() {
    let memory = GlobalMemory::new(1000);
    let address = memory.allocate(600).unwrap();
    let error = memory.allocate(401).unwrap_err();
    assert_eq!(error.to_string(), "device memory is full: 401 bytes asked for, 400 of 1000 are free");
    memory.free(address).unwrap();
    assert!(memory.allocate(1000).is_ok());
    assert_eq!(memory.allocate(0), Err(MemoryError::Empty));
    assert!(matches!(GlobalMemory::new(u64::MAX).allocate(u64::MAX), Err(MemoryError::Full { .. })));
}

#[test]
fn the_host_stays_in_bounds_to_the_byte() {
    let memory = memory();
    let address = memory.allocate(100).unwrap();
    assert!(memory.write(address, &[0; 100]).is_ok());
    let error = memory.write(address, &[0; 101]).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "host write of 101 bytes at {address:#x} is out of bounds: it ends 1 bytes past the end of allocation 1 (100 bytes at \
             {address:#x})"
        )
    );
    let error = memory.read(address + 100, &mut [0; 1]).unwrap_err().to_string();
    assert!(error.contains("it starts 0 bytes past the end of allocation 1"), "{error}");
    let error = memory.fill(address - 4, &[0; 4], 1).unwrap_err().to_string();
    assert!(error.contains("it starts 4 bytes before allocation 1"), "{error}");
    assert!(memory.copy(address + 1, address, u64::MAX).is_err());
    assert!(memory.write(u64::MAX, &[0; 9]).is_err());
}

#[test]
fn freed_memory_is_known_as_such() {
    let memory = memory();
    let address = memory.allocate(64).unwrap();
    memory.write(address, &[1; 64]).unwrap();
    memory.free(address).unwrap();
    let error = memory.read(address + 8, &mut [0; 8]).unwrap_err().to_string();
    assert!(error.ends_with(&format!("allocation 1 (64 bytes at {address:#x}) was freed")), "{error}");
    let error = memory.free(address).unwrap_err().to_string();
    assert!(error.contains("was freed"), "{error}");
    let other = memory.allocate(64).unwrap();
    let error = memory.free(other + 1).unwrap_err().to_string();
    assert!(error.contains("where no allocation starts: it ends"), "{error}");
}

#[test]
fn a_read_of_unwritten_bytes_says_how_many_and_where() {
    let memory = memory();
    let address = memory.allocate(10_000).unwrap();
    memory.write(address, &[1; 4090]).unwrap();
    memory.write(address + 4100, &[2; 5900]).unwrap();
    let mut found = vec![0; 10_000];
    let error = memory.read(address, &mut found).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "host read of 10000 bytes at {address:#x} meets 10 bytes that nobody wrote, the first at allocation 1 (10000 bytes at \
             {address:#x}), offset 4090"
        )
    );
    assert_eq!(found[4089..4091], [1, UNWRITTEN]);
    assert_eq!(found[4099..4101], [UNWRITTEN, 2]);
    let fresh = memory.allocate(8).unwrap();
    assert!(matches!(memory.read(fresh, &mut [0; 8]), Err(MemoryError::Uninitialised { unwritten: 8, .. })));
}

#[test]
fn fills_write_whole_elements() {
    let memory = memory();
    let address = memory.allocate(9000).unwrap();
    memory.fill(address, &[1, 2, 3, 4], 2250).unwrap();
    memory.fill(address + 6, &[9, 8], 3).unwrap();
    memory.fill(address + 1, &[7], 1).unwrap();
    let mut found = vec![0; 9000];
    memory.read(address, &mut found).unwrap();
    assert_eq!(found[..16], [1, 7, 3, 4, 1, 2, 9, 8, 9, 8, 9, 8, 1, 2, 3, 4]);
    assert_eq!(found[8996..], [1, 2, 3, 4]);
    assert_eq!(memory.fill(address + 2, &[0; 4], 1), Err(MemoryError::Misaligned { address: address + 2, element: 4 }));
    assert_eq!(memory.fill(address, &[0; 3], 1), Err(MemoryError::Element(3)));
    assert!(memory.fill(address, &[0; 4], 2251).is_err());
}

#[test]
fn copies_carry_what_is_unwritten() {
    let memory = memory();
    let (from, to) = (memory.allocate(20_000).unwrap(), memory.allocate(20_000).unwrap());
    memory.write(from, &[5; 9000]).unwrap();
    memory.fill(to, &[6], 20_000).unwrap();
    memory.copy(to + 3, from, 19_000).unwrap();
    let mut found = vec![0; 9003];
    memory.read(to, &mut found).unwrap();
    assert_eq!(found[..4], [6, 6, 6, 5]);
    assert!(found[3..].iter().all(|&byte| byte == 5));
    let Err(MemoryError::Uninitialised { unwritten, .. }) = memory.read(to, &mut vec![0; 20_000]) else {
        panic!("unwritten bytes became written")
    };
    assert_eq!(unwritten, 10_000);
    let error = memory.copy(from + 4, from, 8).unwrap_err().to_string();
    assert!(error.contains("overlaps itself"), "{error}");
    assert!(memory.copy(from + 8, from, 8).is_ok());
}

#[test]
fn what_is_alive_is_listed_by_sequence() {
    let memory = memory();
    let first = memory.allocate(10).unwrap();
    let named = memory.allocate_named(20, "table").unwrap();
    let third = memory.allocate(30).unwrap();
    memory.free(first).unwrap();
    let alive = memory.allocations();
    assert_eq!(
        alive.iter().map(|info| (info.address, info.bytes, info.sequence)).collect::<Vec<_>>(),
        [(named, 20, 2), (third, 30, 3)]
    );
    assert_eq!(memory.used(), 50);
    assert_eq!(memory.find(third + 29).map(|info| info.sequence), Some(3));
    assert_eq!(memory.find(third + 30), None);
    let error = memory.write(named, &[0; 21]).unwrap_err().to_string();
    assert!(error.contains("past the end of variable table (20 bytes"), "{error}");
}
