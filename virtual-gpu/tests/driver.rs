//! The driver's interface as a program calls it: memory, modules, launches, streams, graphs, wrong handles, faults that stay. One test: the
//! driver is one per process.

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use virtual_gpu::driver::*;

const ADD: &str = r#"
.version 8.0
.target sm_80
.address_size 64

.visible .entry add(
    .param .u64 add_param_0,
    .param .u32 add_param_1,
    .param .u32 add_param_2
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [add_param_0];
    ld.param.u32 %r1, [add_param_1];
    ld.param.u32 %r2, [add_param_2];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r6, %r3, %r4, %r5;
    setp.ge.u32 %p1, %r6, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r6, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.u32 %r7, [%rd4];
    add.s32 %r7, %r7, %r2;
    st.global.u32 [%rd4], %r7;
DONE:
    ret;
}
"#;

fn ok(code: Code) {
    assert_eq!(code, code::SUCCESS, "{}", last());
}

fn last() -> String {
    let mut text = vec![0_u8; 4096];
    // SAFETY: the buffer has the room that is stated.
    unsafe { virtualGpuLastFault(text.as_mut_ptr().cast(), text.len()) };
    String::from_utf8_lossy(text.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

fn counters() -> String {
    let mut text = vec![0_u8; 4096];
    // SAFETY: the buffer has the room that is stated.
    unsafe { virtualGpuCounters(text.as_mut_ptr().cast(), text.len()) };
    String::from_utf8_lossy(text.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// Launches `add` on `count` words at `address`.
fn launch(function: *mut c_void, address: u64, count: u32, value: u32, blocks: u32, stream: *mut c_void) -> Code {
    let (mut address, mut count, mut value) = (address, count, value);
    let mut parameters = [(&raw mut address).cast::<c_void>(), (&raw mut count).cast(), (&raw mut value).cast()];
    // SAFETY: one address for each parameter of the kernel, of its type.
    unsafe { cuLaunchKernel(function, blocks, 1, 1, 64, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut()) }
}

#[test]
fn a_program_is_served_and_its_mistakes_are_named() {
    // SAFETY: every pointer given below is to a live value of the type that the call names.
    unsafe {
        let mut count = 0;
        assert_eq!(cuDeviceGetCount(&raw mut count), code::NOT_INITIALIZED);
        ok(cuInit(0));
        ok(cuDeviceGetCount(&raw mut count));
        assert_eq!(count, 1);
        let mut major = 0;
        ok(cuDeviceGetAttribute(&raw mut major, 75, 0));
        assert!(major >= 8);
        assert_eq!(cuDeviceGetAttribute(&raw mut major, 75, 3), code::INVALID_DEVICE);
        let mut context = null_mut();
        ok(cuDevicePrimaryCtxRetain(&raw mut context, 0));
        ok(cuCtxSetCurrent(context));
        assert_eq!(cuCtxSetCurrent(0x77 as *mut c_void), code::INVALID_CONTEXT);

        // Memory.
        let words: Vec<u32> = (0..100).collect();
        let mut address = 0;
        ok(cuMemAlloc_v2(&raw mut address, 400));
        ok(cuMemcpyHtoD_v2(address, words.as_ptr().cast(), 400));
        let mut back = vec![0_u32; 100];
        ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), address, 400));
        assert_eq!(back, words);
        assert_eq!(cuMemcpyHtoD_v2(address, words.as_ptr().cast(), 404), code::INVALID_VALUE);
        assert!(last().contains("out of bounds"), "{}", last());
        let mut huge = 0;
        assert_eq!(cuMemAlloc_v2(&raw mut huge, 1 << 45), code::OUT_OF_MEMORY);
        assert_eq!(cuMemFree_v2(address + 4), code::INVALID_VALUE);

        // Modules.
        let mut module = null_mut();
        let broken = CString::new(ADD.replace("mad.lo.s32", "frobnicate.s32")).unwrap();
        assert_eq!(cuModuleLoadData(&raw mut module, broken.as_ptr().cast()), code::INVALID_PTX);
        assert!(last().contains("frobnicate") && last().contains("21"), "{}", last());
        assert_eq!(cuModuleLoadData(&raw mut module, c"\x7fELF".as_ptr().cast()), code::NO_BINARY_FOR_GPU);
        let text = CString::new(ADD).unwrap();
        ok(cuModuleLoadData(&raw mut module, text.as_ptr().cast()));
        let mut function = null_mut();
        assert_eq!(cuModuleGetFunction(&raw mut function, module, c"subtract".as_ptr()), code::NOT_FOUND);
        ok(cuModuleGetFunction(&raw mut function, module, c"add".as_ptr()));

        // Launches, on a stream, with limits and counts.
        let mut stream = null_mut();
        ok(cuStreamCreate(&raw mut stream, 0));
        ok(launch(function, address, 100, 5, 2, stream));
        ok(cuStreamSynchronize(stream));
        ok(cuMemcpyDtoHAsync_v2(back.as_mut_ptr().cast(), address, 400, stream));
        assert!(back.iter().zip(&words).all(|(found, word)| *found == word + 5));
        let counts = counters();
        // 100 words are 12.5 sectors in 4 warps: 4 + 4 + 4 + 1.
        assert!(
            counts.starts_with("{\"add\": {\"launches\": 1, ") && counts.contains("\"sectors_read\": 13,"),
            "{counts}"
        );
        assert_eq!(launch(function, address, 100, 5, 0, stream), code::INVALID_VALUE);
        assert_eq!(launch(0x5550 as *mut c_void, address, 100, 5, 1, stream), code::INVALID_HANDLE);
        assert_eq!(launch(function, address, 100, 5, 1, 0x5550 as *mut c_void), code::INVALID_HANDLE);
        assert_eq!(cuFuncSetAttribute(function, 8, 1 << 20), code::INVALID_VALUE);
        ok(cuFuncSetAttribute(function, 8, 90 << 10));

        // A graph: recorded without effect, replayed twice.
        ok(cuStreamBeginCapture_v2(stream, 0));
        ok(launch(function, address, 100, 1, 2, stream));
        assert_eq!(cuMemAlloc_v2(&raw mut huge, 16), code::STREAM_CAPTURE_UNSUPPORTED);
        let (mut graph, mut executable) = (null_mut(), null_mut());
        ok(cuStreamEndCapture(stream, &raw mut graph));
        ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), address, 400));
        assert_eq!(back[0], 5);
        ok(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        ok(cuGraphLaunch(executable, stream));
        ok(cuGraphLaunch(executable, stream));
        ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), address, 400));
        assert_eq!((back[0], back[99]), (7, 106));
        ok(cuGraphDestroy(graph));
        ok(cuGraphExecDestroy(executable));

        // Events.
        let (mut start, mut end, mut elapsed) = (null_mut(), null_mut(), -1.0_f32);
        ok(cuEventCreate(&raw mut start, 0));
        ok(cuEventCreate(&raw mut end, 0));
        ok(cuEventRecord(start, stream));
        assert_eq!(cuEventElapsedTime(&raw mut elapsed, start, end), code::INVALID_HANDLE);
        ok(cuEventRecord(end, stream));
        ok(cuEventElapsedTime(&raw mut elapsed, start, end));
        assert!(elapsed >= 0.0);

        // One word too many: the launch fails, says where, and nothing works afterwards.
        let failed = launch(function, address, 101, 5, 2, stream);
        assert_eq!(failed, code::ILLEGAL_ADDRESS);
        assert!(last().contains("kernel add, CTA [1, 0, 0], thread [36, 0, 0]"), "{}", last());
        assert_eq!(cuCtxSynchronize(), code::ILLEGAL_ADDRESS);
        assert_eq!(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), address, 400), code::ILLEGAL_ADDRESS);
        virtualGpuClearFault();

        // A leak.
        ok(cuModuleUnload(module));
        assert_eq!(virtualGpuAllocations(), 1);
        ok(cuDevicePrimaryCtxRelease_v2(0));
        assert_eq!(last(), "1 allocations of 400 bytes were never freed");
        ok(cuMemFree_v2(address));
        assert_eq!(virtualGpuAllocations(), 0);
        assert_eq!(cuGetExportTable(null_mut(), null()), code::NOT_FOUND);
    }
}
