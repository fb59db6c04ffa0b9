package ai.onnxruntime;

public final class OrtEnvironment implements AutoCloseable {
    public static synchronized OrtEnvironment getEnvironment() { throw new UnsupportedOperationException(); }
    public OrtSession createSession(String modelPath) throws OrtException { throw new UnsupportedOperationException(); }
    @Override public void close() {}
}
