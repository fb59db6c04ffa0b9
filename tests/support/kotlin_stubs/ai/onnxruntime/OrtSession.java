package ai.onnxruntime;

import java.util.Iterator;
import java.util.Map;
import java.util.Optional;

public class OrtSession implements AutoCloseable {
    public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException { throw new UnsupportedOperationException(); }
    @Override public void close() throws OrtException {}

    public static class Result implements AutoCloseable, Iterable<Map.Entry<String, OnnxValue>> {
        public OnnxValue get(int index) { throw new UnsupportedOperationException(); }
        public Optional<OnnxValue> get(String name) { throw new UnsupportedOperationException(); }
        @Override public Iterator<Map.Entry<String, OnnxValue>> iterator() { throw new UnsupportedOperationException(); }
        @Override public void close() {}
    }
}
