FROM python:3.13-slim
WORKDIR /shop
COPY . .
RUN pip install --no-cache-dir '.[postgres,metrics,flower]' 'granian>=2.8' 'rich>=14'
ENV PYTHONPATH=/shop
